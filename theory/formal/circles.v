(** * Circles (T5): scores that have the period of the grid *)
From mathcomp Require Import all_ssreflect all_algebra zify ring.
From Formal Require Import names setting exponential borders leak.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Axis.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (alpha : R) (n : nat).
Variables (f : int -> R) (t : int) (c : 'I_n).
Hypotheses (alpha0 : 0 < alpha) (periodic : forall z, f (z + n%:Z) = f z).
Hypothesis falls : forall m : nat, (m < n)%N -> alpha * (minn m (n - m))%:R <= f 0 - f m%:Z.
Hypothesis cE : c%:Z = (t %% n%:Z)%Z.
Let x := e (- alpha).

Let n0 : (0 < n)%N := leq_ltn_trans (leq0n c) (ltn_ord c).
Let x0 : 0 < x := exp_gt0 expo _.
Let x1 : x < 1 := exp_neg_lt1 expo alpha0.

Lemma periods z (q : int) : f (z + q * n%:Z) = f z.
Proof.
have up (m : nat) y : f (y + m%:Z * n%:Z) = f y.
  elim: m => [|m IH]; first by rewrite mul0r addr0.
  by rewrite -[m.+1]addn1 PoszD mulrDl mul1r addrA periodic.
case: q => m; first exact: up.
by have := up m.+1 (z + Negz m * n%:Z); rewrite NegzE mulNr subrK => ->.
Qed.

Lemma residue z : f z = f (z %% n%:Z)%Z.
Proof. by rewrite {1}(divz_eq z n%:Z) addrC periods. Qed.

(** Every displacement of the axis is met once. *)
Lemma circle_sum (F : int -> R) : (forall z, F z = F (z %% n%:Z)%Z) ->
  \sum_(j < n) F (j%:Z - t) = \sum_(m < n) F m%:Z.
Proof.
move=> FP; have nz : n%:Z != 0 by rewrite eqz_nat -lt0n.
have lt (j : 'I_n) : (`|((j%:Z - t) %% n%:Z)%Z| < n)%N.
  by rewrite -ltz_nat gez0_abs ?modz_ge0 // ltz_pmod // ltz_nat.
pose g (j : 'I_n) : 'I_n := Ordinal (lt j).
have gE j : (g j)%:Z = ((j%:Z - t) %% n%:Z)%Z by rewrite /= gez0_abs ?modz_ge0.
have gI : injective g.
  move=> i j /(congr1 (fun k : 'I_n => k%:Z)); rewrite !gE => /eqP.
  rewrite eqz_modDr -!/(_ %% _)%Z => /eqP.
  by rewrite !modz_small ?ltz_nat ?ltn_ord // => -[/val_inj].
rewrite [RHS](reindex_inj gI); apply: eq_bigr => j _.
by rewrite gE FP.
Qed.

Lemma circle_axis_sum : \sum_(m < n) e (f m%:Z - f 0) < (1 + x) / (1 - x).
Proof.
have y1 : 0 < 1 - x by rewrite subr_gt0.
rewrite ltr_pdivlMr //.
have term (m : 'I_n) : e (f m%:Z - f 0) <= x ^+ m + (0 < m)%:R * x ^+ (n - m).
  apply: (@le_trans _ _ (x ^+ minn m (n - m))).
    by rewrite -exp_natl // exp_le // mulrN mulrC -opprB lerN2 falls.
  case: (posnP m) => [->|m0]; first by rewrite min0n mul0r addr0.
  by rewrite mul1r; case: leqP => _; rewrite ?lerDl ?lerDr exprn_ge0 // ltW.
apply: (@le_lt_trans _ _ ((\sum_(m < n) (x ^+ m + (0 < m)%:R * x ^+ (n - m))) * (1 - x))).
  by rewrite ler_wpM2r ?(ltW y1) //; apply: ler_sum.
have geometric k : (\sum_(i < k) x ^+ i) * (1 - x) = 1 - x ^+ k.
  by rewrite -[RHS]opprB subrX1 -mulNr opprB mulrC.
have -> : \sum_(m < n) (x ^+ m + (0 < m)%:R * x ^+ (n - m))
    = \sum_(m < n) x ^+ m + x * \sum_(i < n.-1) x ^+ i.
  rewrite big_split; congr +%R; rewrite /=.
  case: n n0 => [//|k] _; rewrite big_ord_recl mul0r add0r mulr_sumr (reindex_inj rev_ord_inj) /=.
  apply: eq_bigr => i _; rewrite mul1r -exprS; congr (_ ^+ _).
  by rewrite /bump /=; have := ltn_ord i; lia.
rewrite mulrDl -mulrA !geometric; apply: ltr_leD.
  by rewrite ltrBlDr ltrDl exprn_gt0.
by rewrite ler_piMr ?(ltW x0) // lerBlDr lerDl exprn_ge0 // ltW.
Qed.

Lemma circle_axis : (1 - x) / (1 + x) < softmax e (fun j : 'I_n => f (j%:Z - t)) c.
Proof.
have at_c : f (c%:Z - t) = f 0.
  have -> : c%:Z - t = 0 + - (t %/ n%:Z)%Z * n%:Z.
    by rewrite cE {2}(divz_eq t n%:Z); move: (t %/ _)%Z (t %% _)%Z => q r; ring.
  exact: periods.
have -> : softmax e (fun j : 'I_n => f (j%:Z - t)) c = (\sum_(m < n) e (f m%:Z - f 0))^-1.
  rewrite -(softmax_constant expo _ (- f 0)) softmax_target // ?at_c ?subrr //.
  congr (_^-1); apply: (circle_sum (F := fun z => e (f z - f 0))) => z.
  by rewrite residue.
have S0 := sum_exp_gt0 expo (fun m : 'I_n => f m%:Z - f 0) c.
have p : 0 < 1 + x by rewrite addr_gt0 ?ltr01.
have q : 0 < 1 - x by rewrite subr_gt0.
by rewrite -[X in X < _]invrK ltf_pV2 ?posrE // ?invr_gt0 ?divr_gt0 // invf_div circle_axis_sum.
Qed.
End Axis.

Lemma circle_leak (R : realFieldType) (e : R -> R) (expo : exponential e) (alpha : R) (d : nat)
    (n : 'I_d -> nat) (f : 'I_d -> int -> R) (t : position d) (c : {dffun forall i, 'I_(n i)}) :
  (0 < d)%N -> 0 < alpha -> (forall i z, f i (z + (n i)%:Z) = f i z) ->
  (forall i (m : nat), (m < n i)%N -> alpha * (minn m (n i - m))%:R <= f i 0 - f i m%:Z) ->
  (forall i, (c i)%:Z = (t 0%R i %% (n i)%:Z)%Z) ->
  1 - softmax e (fun k : {dffun forall i, 'I_(n i)} => \sum_i f i ((k i)%:Z - t 0 i)) c
  < 1 - ((1 - e (- alpha)) / (1 + e (- alpha))) ^+ d.
Proof.
move=> d0 alpha0 periodic falls cE; have x0 := exp_gt0 expo (- alpha).
have x1 := exp_neg_lt1 expo alpha0; rewrite ltrD2l ltrN2.
rewrite (softmax_product expo (fun i (j : 'I_(n i)) => f i (j%:Z - t 0 i))).
have -> : ((1 - e (- alpha)) / (1 + e (- alpha))) ^+ d
    = \prod_(i < d) ((1 - e (- alpha)) / (1 + e (- alpha))) by rewrite prodr_const card_ord.
apply: ltr_prod => [|i _]; first by apply/hasP; exists (Ordinal d0); rewrite ?mem_index_enum.
rewrite divr_ge0 ?subr_ge0 ?addr_ge0 ?ler01 ?(ltW x0) ?(ltW x1) //=.
exact: circle_axis (periodic i) (falls i) (cE i).
Qed.
