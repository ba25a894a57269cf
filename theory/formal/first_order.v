(** * A soft padding to first order (T4): one step of the heat equation *)
From mathcomp Require Import all_ssreflect all_algebra zify ring.
From Formal Require Import names setting shifts exponential leak borders sinks scalar.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Lemma quotient_error (R : realFieldType) (y s b c : R) : 1 + s != 0 ->
  (y * (1 + s) + (b + c)) / (1 + s) - y - b = (c - s * b) / (1 + s).
Proof. by move=> s0; field. Qed.

(** ** One row: weights relative to that of the limit t, of some keys F and of the rest *)
Section Row.
Variables (R : realFieldType) (K : finType) (t : K) (F : pred K) (w X : K -> R) (D : R).
Hypotheses (wt : w t = 1) (w0 : forall k, 0 <= w k) (Ft : ~~ F t).
Hypothesis XD : forall k, `|X k - X t| <= D.
Let phi := \sum_(k | F k) w k.
Let psi := \sum_(k | (k != t) && ~~ F k) w k.

Lemma row_error :
  `|(\sum_k w k * X k) / (\sum_k w k) - X t - \sum_(k | F k) w k * (X k - X t)|
  <= (psi + phi ^+ 2) * D.
Proof.
have D0 : 0 <= D := le_trans (normr_ge0 _) (XD t).
have phi0 : 0 <= phi by apply: sumr_ge0.
have psi0 : 0 <= psi by apply: sumr_ge0.
pose B := \sum_(k | F k) w k * (X k - X t).
pose C := \sum_(k | (k != t) && ~~ F k) w k * (X k - X t).
have size (P : pred K) : `|\sum_(k | P k) w k * (X k - X t)| <= (\sum_(k | P k) w k) * D.
  apply: le_trans (ler_norm_sum _ _ _) _; rewrite mulr_suml; apply: ler_sum => k _.
  by rewrite normrM (ger0_norm (w0 k)) ler_wpM2l.
have split (f : K -> R) : \sum_k f k = f t + (\sum_(k | F k) f k + \sum_(k | (k != t) && ~~ F k) f k).
  rewrite (bigD1 t) //=; congr +%R; rewrite (bigID F) /=; congr +%R.
  by apply: eq_bigl => k; case: eqP => [->|]; rewrite ?(negbTE Ft).
have S : \sum_k w k = 1 + phi + psi by rewrite split wt addrA.
have N : \sum_k w k * X k = X t * (1 + phi + psi) + (B + C).
  rewrite -S mulr_sumr -[LHS]/(\sum_k w k * X k).
  have -> : \sum_k w k * X k = \sum_k X t * w k + \sum_k w k * (X k - X t).
    by rewrite -big_split; apply: eq_bigr => k _ /=; ring.
  by rewrite [X in _ + X]split subrr mulr0 add0r.
have s0 : 0 < 1 + phi + psi by rewrite -addrA ltr_wpDr ?ltr01 // addr_ge0.
rewrite N S -/B.
rewrite -![1 + phi + psi]addrA quotient_error; last by rewrite addrA gt_eqF.
rewrite !addrA.
rewrite normrM normfV (gtr0_norm s0) ler_pdivrMr //.
apply: le_trans (ler_normB _ _) _; rewrite normrM ger0_norm ?addr_ge0 //.
have b1 : `|B| <= phi * D := size F.
have c1 : `|C| <= psi * D := size _.
apply: (@le_trans _ _ (psi * D + (phi + psi) * (phi * D))).
  by rewrite lerD // ler_wpM2l ?addr_ge0.
rewrite -subr_ge0.
have -> : (psi + phi ^+ 2) * D * (1 + phi + psi) - (psi * D + (phi + psi) * (phi * D))
    = (psi ^+ 2 + phi ^+ 2 * (phi + psi)) * D by ring.
by rewrite mulr_ge0 // addr_ge0 ?mulr_ge0 ?exprn_ge0 ?addr_ge0.
Qed.
End Row.

(** ** The neighbours of a position: one step along one axis *)
Section Neighbours.
Variable d : nat.
Implicit Types (p : position d) (a : 'I_d * bool).

Definition step a : position d := \row_i (if i == a.1 then (-1) ^+ a.2 else 0).

Lemma step_entry a i : (`|step a 0%R i| ^ 2)%N = (i == a.1).
Proof. by rewrite mxE; case: eqP => // _; case: a.2. Qed.

Lemma step_le1 a i : (`|step a 0%R i| <= 1)%N.
Proof. by rewrite mxE; case: eqP => // _; case: a.2. Qed.

Lemma sqnorm_step a : sqnorm (step a) = 1%N.
Proof.
rewrite /sqnorm (bigD1 a.1) //= step_entry eqxx big1 // => i ia.
by rewrite step_entry (negbTE ia).
Qed.

Lemma step_inj : injective step.
Proof.
move=> [i b] [j c] E; have ij : i = j.
  apply/eqP; have := congr1 (fun p : position d => (`|p 0%R i| ^ 2)%N) E; rewrite !step_entry eqxx.
  by case: eqP.
subst j; congr (_, _); have := congr1 (fun p : position d => p 0 i) E; rewrite !mxE /= eqxx.
by case: b {E}; case: c.
Qed.

Lemma unit_step p : sqnorm p = 1%N -> exists a, p = step a.
Proof.
move=> p1; have [i pi] : exists i, p 0 i != 0.
  apply/existsP; apply: contra_eqT p1 => /existsPn none; rewrite /sqnorm big1 // => i _.
  by have := none i; rewrite negbK => /eqP ->.
have rest : (`|p 0%R i| ^ 2 = 1)%N /\ forall j, j != i -> p 0 j = 0.
  have pos : (0 < `|p 0%R i| ^ 2)%N by rewrite expn_gt0 absz_gt0 pi.
  move: p1; rewrite /sqnorm (bigD1 i) //=; set s := (\sum_(_ | _) _)%N => E.
  have s0 : s = 0%N by lia.
  split=> [|j ji]; first by lia.
  move/eqP: s0; rewrite sum_nat_eq0 => /forallP/(_ j); rewrite ji /= expn_eq0 absz_eq0 andbT.
  by move/eqP.
exists (i, p 0 i < 0); apply/rowP => j; rewrite mxE /=; case: eqP => [->|/eqP/rest.2 //].
have [] := rest; move: (p 0 i) => z z1 _; have : `|z|%N = 1%N by move: z1; rewrite -[1%N in RHS](exp1n 2) => /eqP; rewrite eqn_exp2r // => /eqP.
by case: (ltP z 0) => z0 zz; rewrite ?expr1 ?expr0; lia.
Qed.
End Neighbours.

Section Laplacian.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (alpha : R) (d : nat).
Variables (K : finType) (pos : K -> position d) (t : K) (N : nat).
Hypotheses (posI : injective pos) (near : within pos (pos t) N) (N0 : (0 < N)%N).
Let x := e (- alpha).
Let r k := sqnorm (pos k - pos t).

Let x0 : 0 < x := exp_gt0 expo _.

Lemma neighbours_few : \sum_(k | r k == 1%N) x ^+ r k <= 2%:R * d%:R * x.
Proof.
apply: (@le_trans _ _ (\sum_k \sum_(a : 'I_d * bool) x *+ (pos k - pos t == step a))).
  rewrite big_mkcond; apply: ler_sum => k _; case: eqP => [r1|_]; last first.
    by apply: sumr_ge0 => a _; apply/mulrn_wge0/ltW.
  have [a aE] := unit_step r1; rewrite r1 expr1 (bigD1 a) //= aE eqxx lerDl.
  by apply: sumr_ge0 => b _; apply/mulrn_wge0/ltW.
rewrite exchange_big /=; apply: (@le_trans _ _ (\sum_(a : 'I_d * bool) x)); last first.
  by rewrite sumr_const card_prod card_ord card_bool -[leLHS]mulr_natl natrM [2%:R * _]mulrC.
apply: ler_sum => a _; case: (boolP [exists k, pos k - pos t == step a]) => [/existsP[k /eqP kE]|].
  rewrite (bigD1 k) //= kE eqxx big1 ?addr0 // => j jk.
  by rewrite -kE (inj_eq (addIr _)) (inj_eq posI) (negbTE jk).
move/existsPn => none; rewrite big1 ?ltW // => k _.
by rewrite (negbTE (none k)).
Qed.

(** The keys at squared distance 2 or more, the target and the 2d neighbours, whether keys or not, are
    distinct points of the cube. *)
Lemma others_few :
  \sum_(k | (k != t) && (r k != 1%N)) x ^+ r k <= theta x N ^+ d - 1 - 2%:R * d%:R * x.
Proof.
pose place (j : K + ('I_1 + 'I_d * bool)) : position d :=
  match j with inl k => pos k | inr (inl _) => pos t | inr (inr a) => pos t + step a end.
pose Q (j : K + ('I_1 + 'I_d * bool)) : bool := if j is inl k then (k != t) && (r k != 1%N) else true.
pose rho j := sqnorm (place j - pos t).
have rt u : rho (inr (inl u)) = 0%N by rewrite /rho /= subrr sqnorm0.
have ra a : rho (inr (inr a)) = 1%N by rewrite /rho /= addrAC subrr add0r sqnorm_step.
have rk k : Q (inl k) -> rho (inl k) != 0%N /\ rho (inl k) != 1%N.
  case/andP=> kt k1; split=> //; rewrite -lt0n; apply: sqnorm_gt0.
  by rewrite subr_eq0 (inj_eq posI).
have placeI : {in Q &, injective place}.
  have apart i j : place i = place j -> rho i = rho j by rewrite /rho => ->.
  move=> [k|[u|a]] [k'|[u'|a']] Qi Qj E; have := apart _ _ E; rewrite ?rt ?ra //.
  - by move/posI: E => ->.
  - by move=> r0; have [] := rk k Qi; rewrite r0.
  - by move=> r1; have [] := rk k Qi; rewrite r1.
  - by move=> r0; have [] := rk k' Qj; rewrite -r0.
  - by rewrite !ord1.
  - by move=> r1; have [] := rk k' Qj; rewrite -r1.
  - by move/addrI/step_inj: E => ->.
have nearQ j i : Q j -> (`|(place j - pos t)%R 0%R i| <= N)%N.
  case: j => [k|[u|a]] _; first exact: near.
    by rewrite /= subrr mxE.
  by rewrite /= addrAC subrr add0r; apply: leq_trans N0; apply: step_le1.
have := @sum_le_axes_in R d _ Q place (fun _ z => x ^+ (`|z| ^ 2)) (pos t) N placeI
  (fun _ _ => exprn_ge0 _ (ltW x0)) nearQ.
have -> : \prod_(i < d) (\sum_(j < N + N.+1) x ^+ (`|j%:Z - N%:Z| ^ 2)) = theta x N ^+ d.
  by rewrite (eq_bigr (fun=> theta x N)) => [|i _]; rewrite ?prodr_const ?card_ord ?theta_axis.
rewrite (eq_bigr (fun j => x ^+ rho j)) => [|j _]; last by rewrite /rho axes_power.
rewrite big_sumType big_sumType /= big_ord1 rt expr0.
rewrite (eq_bigr (fun=> x) (P := predT)) => [|a _]; last by rewrite ra expr1.
rewrite sumr_const card_prod card_ord card_bool => le.
rewrite -addrA -opprD lerBrDr; apply: le_trans le; rewrite lerD2l lerD2l.
by rewrite -[leRHS]mulr_natl natrM [2%:R * _]mulrC.
Qed.

Lemma laplacian (X : K -> R) (D : R) : (forall k, `|X k - X t| <= D) ->
  `|(\sum_k x ^+ r k * X k) / (\sum_k x ^+ r k) - X t - x * \sum_(k | r k == 1%N) (X k - X t)|
  <= (theta x N ^+ d - 1 - 2%:R * d%:R * x + (2%:R * d%:R * x) ^+ 2) * D.
Proof.
move=> XD; have D0 : 0 <= D := le_trans (normr_ge0 _) (XD t).
have rt : x ^+ r t = 1 by rewrite /r subrr sqnorm0.
have w0 k : 0 <= x ^+ r k by apply/exprn_ge0/ltW.
have Ft : ~~ (r t == 1%N) by rewrite /r subrr sqnorm0.
have -> : x * (\sum_(k | r k == 1%N) (X k - X t)) = \sum_(k | r k == 1%N) x ^+ r k * (X k - X t).
  by rewrite mulr_sumr; apply: eq_bigr => k /eqP ->.
apply: le_trans (row_error rt w0 Ft XD) _; apply: ler_wpM2r => //.
apply: lerD; first exact: others_few.
by rewrite ler_expn2r ?nnegrE ?sumr_ge0 ?mulr_ge0 ?ler0n ?(ltW x0) // neighbours_few.
Qed.
End Laplacian.

(** ** Nothing is forgotten: on one axis, any n rows of n keys are independent *)
Lemma axis_unit (R : realFieldType) (e : R -> R) (expo : exponential e) (alpha : R) (n : nat)
    (t : 'I_n -> int) : alpha != 0 -> injective t ->
  \matrix_(j, k) softmax e (fun k : 'I_n => - (alpha * (k%:R - (t j)%:~R) ^+ 2)) k \in unitmx.
Proof.
move=> alpha0 tI; pose y j := e (2%:R * alpha * (t j)%:~R).
have yI : injective y.
  have two : 2%:R * alpha != 0 by rewrite mulf_neq0 // pnatr_eq0.
  by move=> i j /(exp_inj expo)/(mulfI two)/eqP; rewrite eqr_int => /eqP/tI.
pose Z j := \sum_(k < n) e (- (alpha * (k%:R - (t j)%:~R) ^+ 2)).
pose L : 'M[R]_n := diag_mx (\row_j (e (- (alpha * (t j)%:~R ^+ 2)) / Z j)).
pose S : 'M[R]_n := diag_mx (\row_k e (- (alpha * k%:R ^+ 2))).
have Z0 j (k : 'I_n) : Z j != 0 by rewrite gt_eqF // (sum_exp_gt0 expo _ k).
have -> : \matrix_(j, k) softmax e (fun k : 'I_n => - (alpha * (k%:R - (t j)%:~R) ^+ 2)) k
    = L *m powers y *m S.
  apply/matrixP => j k; rewrite mul_mx_diag mxE mul_diag_mx !mxE /softmax -/(Z j).
  rewrite /y -(exp_natl expo) [_ / Z j * _]mulrAC [RHS]mulrAC; congr (_ / _).
  rewrite -!expo.1; congr e; move: (k%:R : R) ((t j)%:~R : R) => a b; ring.
have unit (v : 'rV[R]_n) : (forall k, v 0 k != 0) -> diag_mx v \in unitmx.
  by move=> v0; rewrite unitmxE det_diag unitfE; apply/prodf_neq0 => k _.
rewrite unitmx_mul unitmx_mul powers_unit // !andbT andbC; apply/andP; split; apply: unit => k.
  by rewrite mxE gt_eqF ?exp_gt0.
by rewrite mxE mulf_neq0 ?invr_eq0 ?(Z0 k k) // gt_eqF ?exp_gt0.
Qed.
