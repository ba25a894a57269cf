(** * What a sink loses (T5)

    On the grid the sink adds its weight to the sum; off the grid all keys together are small beside
    it, since one axis at least has no key at the target. *)
From mathcomp Require Import all_ssreflect all_algebra zify ring.
From Formal Require Import names setting exponential leak borders.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Axis.
Variables (R : realFieldType) (x : R).

(** An axis that the target leaves on one side has half of the terms. *)
Definition side (right : bool) (z : int) : bool := if right then 0 < z else z < 0.

Lemma half_axis N (right : bool) :
  \sum_(j < N + N.+1) (side right (j%:Z - N%:Z))%:R * x ^+ (`|j%:Z - N%:Z| ^ 2)
  = (theta x N - 1) / 2%:R.
Proof.
have -> : (theta x N - 1) / 2%:R = \sum_(n < N) x ^+ (n.+1 ^ 2).
  by rewrite /theta; move: (\sum_(n < N) _) => s; field.
rewrite big_split_ord big_ord_recl /= (reindex_inj rev_ord_inj) /=.
have -> : side right ((N + 0)%N%:Z - N%:Z) = false by rewrite addn0 subrr /side ltxx if_same.
rewrite mul0r add0r.
set L := \sum_(j < N) _; set M := \sum_(i < N) _.
have -> : L = (~~ right)%:R * \sum_(n < N) x ^+ (n.+1 ^ 2).
  rewrite /L {L M} mulr_sumr; apply: eq_bigr => n _; have lt := ltn_ord n.
  have -> : ((N - n.+1)%N%:Z - N%:Z) = - n.+1%:Z by lia.
  by rewrite abszN /side; case: right.
have -> : M = right%:R * \sum_(n < N) x ^+ (n.+1 ^ 2).
  rewrite /M {L M} mulr_sumr; apply: eq_bigr => n _; rewrite /bump /=.
  have -> : ((N + (1 + n))%N%:Z - N%:Z) = n.+1%:Z by lia.
  by rewrite /side; case: right.
by rewrite {L M} -mulrDl; case: right; rewrite /= ?addr0 ?add0r mul1r.
Qed.

Hypotheses (x0 : 0 <= x) (x1 : x <= 1).

(** Of two neighbours one at most is taken, at the odd number or after it. *)
Lemma pairs_le (P : pred nat) N : (forall m, ~~ (P m && P m.+1)) ->
  \sum_(n < N.*2) (P n)%:R * x ^+ (n.+1 ^ 2) <= odd_theta x N.
Proof.
move=> apart; elim: N => [|N IH]; first by rewrite /odd_theta !big_ord0.
rewrite doubleS 2!big_ord_recr /odd_theta big_ord_recr /= -addrA lerD //.
have le : x ^+ (N.*2.+2 ^ 2) <= x ^+ (N.*2.+1 ^ 2) by rewrite ler_wiXn2l // leq_exp2r.
have := apart N.*2; case: (P N.*2); case: (P N.*2.+1) => //= _; rewrite ?mul1r ?mul0r ?addr0 ?add0r //.
exact: exprn_ge0.
Qed.

Lemma sparse_axis (P : int -> bool) N : ~~ P 0 -> (forall z, ~~ (P z && P (z + 1))) ->
  \sum_(j < N.*2 + N.*2.+1) (P (j%:Z - N.*2%:Z))%:R * x ^+ (`|j%:Z - N.*2%:Z| ^ 2)
  <= 2%:R * odd_theta x N.
Proof.
move=> P0 apart; rewrite big_split_ord big_ord_recl /= (reindex_inj rev_ord_inj) /=.
rewrite addn0 subrr (negbTE P0) mul0r add0r mulr_natl mulr2n.
set L := \sum_(j < _) _; set M := \sum_(i < _) _.
have -> : L = \sum_(n < N.*2) (P (- n.+1%:Z))%:R * x ^+ (n.+1 ^ 2).
  apply: eq_bigr => n _; have lt := ltn_ord n.
  have -> : ((N.*2 - n.+1)%N%:Z - N.*2%:Z) = - n.+1%:Z by lia.
  by rewrite abszN.
have -> : M = \sum_(n < N.*2) (P n.+1%:Z)%:R * x ^+ (n.+1 ^ 2).
  apply: eq_bigr => n _; rewrite /bump /=.
  by have -> : ((N.*2 + (1 + n))%N%:Z - N.*2%:Z) = n.+1%:Z by lia.
apply: lerD.
  apply: (pairs_le (P := fun n => P (- n.+1%:Z))) => m.
  have := apart (- m.+2%:Z); rewrite andbC.
  by have -> : - m.+2%:Z + 1 = - m.+1%:Z by lia.
apply: (pairs_le (P := fun n => P n.+1%:Z)) => m.
by have := apart m.+1%:Z; have -> : m.+1%:Z + 1 = m.+2%:Z by lia.
Qed.
End Axis.

Section Sums.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (alpha : R) (d : nat).
Variables (K : finType) (pos : K -> position d).
Hypotheses (alpha0 : 0 < alpha) (posI : injective pos).
Let x := e (- alpha).

Let x0 : 0 < x := exp_gt0 expo _.
Let x1 : x < 1 := exp_neg_lt1 expo alpha0.

Lemma score_power (p : position d) : e (- (alpha * (sqnorm p)%:R)) = x ^+ sqnorm p.
Proof. by rewrite -exp_natl // mulrN mulrC. Qed.

Lemma axes_power (p : position d) : x ^+ sqnorm p = \prod_i x ^+ (`|p 0 i| ^ 2).
Proof. by rewrite expr_sum. Qed.

(** Off the grid: on axis i all keys are where P says. *)
Lemma off_grid_sum (t : position d) (i : 'I_d) (P : int -> bool) (N : nat) (U : R) :
  (forall k, P ((pos k - t) 0 i)) -> within pos t N ->
  \sum_(j < N + N.+1) (P (j%:Z - N%:Z))%:R * x ^+ (`|j%:Z - N%:Z| ^ 2) <= U ->
  \sum_k e (- (alpha * (sqnorm (pos k - t))%:R)) <= U * theta x N ^+ d.-1.
Proof.
move=> PP near axis; pose w i' z : R := (if i' == i then (P z)%:R else 1) * x ^+ (`|z| ^ 2).
have w0 i' z : 0 <= w i' z.
  by apply: mulr_ge0; [case: ifP; rewrite ?ler0n ?ler01 | apply/exprn_ge0/ltW].
have -> : \sum_k e (- (alpha * (sqnorm (pos k - t))%:R)) = \sum_k \prod_i' w i' ((pos k - t) 0 i').
  apply: eq_bigr => k _; rewrite score_power axes_power; apply: eq_bigr => i' _.
  by rewrite /w; case: eqP => [->|_]; rewrite ?PP mul1r.
apply: le_trans (sum_le_axes posI w0 near) _.
rewrite (bigD1 i) //= {1}/w eqxx.
have -> : \prod_(i' | i' != i) (\sum_(j < N + N.+1) w i' (j%:Z - N%:Z)) = theta x N ^+ d.-1.
  rewrite (eq_bigr (fun=> theta x N)) => [|i' ne].
    by rewrite prodr_const (cardC1 i) card_ord.
  by rewrite -theta_axis; apply: eq_bigr => j _; rewrite /w (negbTE ne) mul1r.
by apply: ler_wpM2r => //; apply/exprn_ge0/ltW/theta_gt0/ltW.
Qed.

(** Off the grid between keys: none has the target's coordinate, and no two are neighbours. *)
Lemma between_sum (t : position d) (i : 'I_d) N : within pos t N.*2 ->
  (forall k, pos k 0 i != t 0 i) -> (forall k k', pos k 0 i != pos k' 0 i + 1) ->
  \sum_k e (- (alpha * (sqnorm (pos k - t))%:R)) <= 2%:R * odd_theta x N * theta x N.*2 ^+ d.-1.
Proof.
move=> near off apart; pose P z := [exists k, (pos k - t) 0 i == z].
have PP k : P ((pos k - t) 0 i) by apply/existsP; exists k.
apply: (off_grid_sum PP near).
apply: (sparse_axis (ltW x0) (ltW x1)) => [|z].
  by apply/existsPn => k; rewrite !mxE subr_eq0.
apply/negP => /andP[/existsP[k /eqP kz] /existsP[k' /eqP kz']].
have /eqP := apart k' k; apply; move: kz kz'; rewrite !mxE => <- kz'.
by apply: (addIr (- t 0 i)); rewrite kz' addrAC.
Qed.

(** On the grid: 1 - 1/(S + x^c). *)
Lemma on_grid_leak (c : R) (t : K) (B : R) :
  \sum_k e (- (alpha * (sqnorm (pos k - pos t))%:R)) <= B ->
  1 - softmax_with_sink e (- (c * alpha)) (fun k => - (alpha * (sqnorm (pos k - pos t))%:R)) t
  <= 1 - (B + e (- (c * alpha)))^-1.
Proof.
move=> SB; rewrite /softmax_with_sink subrr sqnorm0 mulr0 oppr0 exp0 // mul1r lerD2l lerN2.
have S0 := sum_exp_gt0 expo (fun k => - (alpha * (sqnorm (pos k - pos t))%:R)) t.
have c0 := exp_gt0 expo (- (c * alpha)).
by rewrite lef_pV2 ?posrE ?addr_gt0 ?lerD2r // (lt_le_trans S0).
Qed.

(** Off the grid: R/(1 + R), R = V/x^c. *)
Lemma off_grid_leak (c : R) (t : position d) (V : R) :
  \sum_k e (- (alpha * (sqnorm (pos k - t))%:R)) <= V ->
  1 - e (- (c * alpha)) / (\sum_k e (- (alpha * (sqnorm (pos k - t))%:R)) + e (- (c * alpha)))
  <= e (c * alpha) * V / (1 + e (c * alpha) * V).
Proof.
set S := \sum_k _ => SV; have S0 : 0 <= S by apply: sumr_ge0 => k _; apply/ltW/exp_gt0.
have z0 := exp_gt0 expo (- (c * alpha)); have y0 := exp_gt0 expo (c * alpha).
have yz := expK expo (c * alpha); move: (e (- _)) (e (c * alpha)) z0 y0 yz => z y z0 y0 yz.
have yV : y * S <= y * V by rewrite ler_pM2l.
have p : 0 < 1 + y * S by rewrite ltr_wpDr ?ltr01 // mulr_ge0 // ltW.
have q : 0 < 1 + y * V by apply: lt_le_trans p _; rewrite lerD2l.
have -> : 1 - z / (S + z) = 1 - (1 + y * S)^-1.
  congr (1 - _); have -> : S + z = z * (1 + y * S) by rewrite mulrDr mulr1 mulrA [z * y]mulrC yz mul1r addrC.
  by rewrite invfM mulrA divff ?mul1r // gt_eqF.
have -> : y * V / (1 + y * V) = 1 - (1 + y * V)^-1 by field; rewrite gt_eqF.
by rewrite lerD2l lerN2 lef_pV2 ?posrE // lerD2l.
Qed.

(** The sums on the grid: keys at any distinct points, and at those of a spaced lattice. *)
Lemma on_grid_sum (t : K) N : within pos (pos t) N ->
  \sum_k e (- (alpha * (sqnorm (pos k - pos t))%:R)) <= theta x N ^+ d.
Proof.
move=> near; have -> : theta x N ^+ d = \prod_(i < d) theta x N by rewrite prodr_const card_ord.
apply: le_trans (sum_le_theta posI (fun=> ltW x0) near); apply: ler_sum => k _.
by rewrite score_power axes_power.
Qed.

Lemma spaced_sum (origin : position d) (s : 'I_d -> nat) (index : K -> position d) (t : K) N :
  injective index -> (forall k, pos k = lattice_point origin s (index k)) ->
  within index (index t) N ->
  \sum_k e (- (alpha * (sqnorm (pos k - pos t))%:R)) <= \prod_i theta (x ^+ (s i ^ 2)) N.
Proof.
move=> indexI lattice near.
apply: le_trans (sum_le_theta indexI (fun i => exprn_ge0 _ (ltW x0)) near).
apply: ler_sum => k _; rewrite score_power axes_power le_eqVlt; apply/orP; left; apply/eqP.
apply: eq_bigr => i _; rewrite -exprM -expnMn !lattice !mxE; congr (_ ^+ (_ ^ 2)%N).
move: (index k 0 i) (index t 0 i) (origin 0 i) => y z o.
by rewrite -[X in (X * _)%N]absz_nat -abszM; congr absz; ring.
Qed.

Lemma shallow (h Q U : R) : h * (Q * (1 + 2%:R * U) - 1 + h) - U * Q
  = (2%:R * h - 1) * (U * Q) + h * (Q - 1) + h ^+ 2.
Proof. ring. Qed.

Lemma deep (h Q U : R) : h * (Q * (1 + 2%:R * U) - 1 + h) - U * Q
  = (Q - 1) * (h - U * (1 - 2%:R * h)) + (h - U * (1 - 2%:R * h) - (h - h ^+ 2)).
Proof. ring. Qed.

(** At spacing 1 and depth one half, one formula for both. *)
Lemma half_depth (N : nat) : (0 < d)%N ->
  let z := e (alpha / 2%:R) * ((theta x N - 1) / 2%:R * theta x N ^+ d.-1) in
  z / (1 + z) <= 1 - (theta x N ^+ d + e (- (alpha / 2%:R)))^-1.
Proof.
move=> d0; cbv zeta; set h := e (- (alpha / 2%:R)); have h0 : 0 < h := exp_gt0 expo _.
have yh := expK expo (alpha / 2%:R); rewrite -/h in yh; set y := e (alpha / 2%:R) in yh *.
have y0 : 0 < y := exp_gt0 expo _.
have xh : x = h ^+ 2 by rewrite /x expr2 -expo.1 -opprD -splitr.
set U := (theta x N - 1) / 2%:R; set Q := theta x N ^+ d.-1.
have tE : theta x N = 1 + 2%:R * U by rewrite /U; move: (theta x N) => s; field.
have Q1 : 1 <= Q by rewrite exprn_ege1 // theta_ge1 // ltW.
have dE : theta x N ^+ d = Q * (1 + 2%:R * U) by rewrite -tE -exprSr prednK.
have U0 : 0 <= U by rewrite divr_ge0 ?ler0n // subr_ge0 theta_ge1 // ltW.
have Q0 := lt_le_trans ltr01 Q1.
have key : U * Q <= h * (theta x N ^+ d - 1 + h).
  rewrite dE -subr_ge0; have [half|half] := leP 2%:R^-1 h.
    have -> : h * (Q * (1 + 2%:R * U) - 1 + h) - U * Q
        = (2%:R * h - 1) * (U * Q) + h * (Q - 1) + h ^+ 2.
      exact: shallow.
    have h2 : 0 <= 2%:R * h - 1 by rewrite subr_ge0 mulrC -ler_pdivrMr ?ltr0n // div1r.
    rewrite addr_ge0 ?exprn_ge0 ?(ltW h0) // addr_ge0 //; last first.
      by rewrite mulr_ge0 ?subr_ge0 // ltW.
    by rewrite mulr_ge0 // mulr_ge0 // ltW.
  set b := h - U * (1 - 2%:R * h).
  have bP : h - h ^+ 2 <= b.
    rewrite lerD2l lerN2; have x3 : 0 < 1 - x ^+ 3 by rewrite subr_gt0 exprn_ilt1 // ltW.
    have Ux : U <= x / (1 - x ^+ 3).
      by rewrite ler_pdivrMr ?ltr0n // mulrC lerBlDr [leRHS]addrC theta_le // ltW.
    apply: (@le_trans _ _ (x / (1 - x ^+ 3) * (1 - x ^+ 3))); last by rewrite divfK ?gt_eqF // xh.
    have h21 : 0 <= 1 - 2%:R * h.
      by rewrite subr_ge0 mulrC -ler_pdivlMr ?ltr0n // div1r ltW.
    apply: ler_pM => //; rewrite lerD2l lerN2 (@le_trans _ _ x) //.
      by rewrite exprS ler_piMr ?(ltW x0) // exprn_ile1 // ltW.
    rewrite xh expr2 ler_wpM2r ?(ltW h0) //; apply: (le_trans (ltW half)).
    by apply: (@le_trans _ _ 1); rewrite ?invf_le1 ?ltr0n ?ler1n.
  have -> : h * (Q * (1 + 2%:R * U) - 1 + h) - U * Q = (Q - 1) * b + (b - (h - h ^+ 2)).
    exact: deep.
  have b0 : 0 <= b.
    apply: le_trans bP; rewrite expr2 -[X in X - _]mulr1 -mulrBr mulr_ge0 ?(ltW h0) // subr_ge0.
    by apply: le_trans (ltW half) _; rewrite invf_le1 ?ltr0n // ler1n.
  by apply: addr_ge0; [apply: mulr_ge0 => // | ]; rewrite subr_ge0.
set m := y * (U * Q); have m0 : 0 <= m := mulr_ge0 (ltW y0) (mulr_ge0 U0 (ltW Q0)).
have p : 0 < 1 + m by rewrite ltr_wpDr ?ltr01.
have -> : m / (1 + m) = 1 - (1 + m)^-1 by field; rewrite gt_eqF.
have le : 1 + m <= theta x N ^+ d + h.
  have : y * (U * Q) <= y * (h * (theta x N ^+ d - 1 + h)) by rewrite ler_pM2l.
  by rewrite [leRHS]mulrA yh mul1r -/m addrAC => le; rewrite addrC -lerBrDr.
by rewrite lerD2l lerN2 lef_pV2 ?posrE // (lt_le_trans p).
Qed.
End Sums.

(** The cube of side 2N + 1 around the target attains its sum. *)
Lemma cube_sum (R : realFieldType) (e : R -> R) (expo : exponential e) (alpha : R) d N
    (t : position d) :
  \sum_k e (- (alpha * (sqnorm (cube (N := N) t k - t))%:R)) = theta (e (- alpha)) N ^+ d.
Proof.
have -> : theta (e (- alpha)) N ^+ d = \prod_(i < d) theta (e (- alpha)) N.
  by rewrite prodr_const card_ord.
under [RHS]eq_bigr do rewrite -theta_axis.
rewrite bigA_distr_bigA; apply: eq_bigr => k _.
rewrite score_power // axes_power; apply: eq_bigr => i _.
by rewrite /cube [t + _]addrC addrK mxE.
Qed.
