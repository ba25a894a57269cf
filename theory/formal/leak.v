(** * What a head with quadratic scores leaves to other keys (T2)

    One axis at a time: the weights on an axis are some of the terms of a theta function. *)
From mathcomp Require Import all_ssreflect all_algebra zify ring.
From Formal Require Import names setting exponential.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Theta.
Variables (R : realFieldType) (x : R).

(** The 2N + 1 keys of an axis around its target, counted from the first one. *)
Lemma theta_axis N : \sum_(j < N + N.+1) x ^+ (`|j%:Z - N%:Z| ^ 2) = theta x N.
Proof.
rewrite big_split_ord big_ord_recl /= (reindex_inj rev_ord_inj) /=.
set L := \sum_(j < N) _; set M := \sum_(i < N) _.
have -> : L = \sum_(n < N) x ^+ (n.+1 ^ 2).
  by apply: eq_bigr => n _; congr (_ ^+ (_ ^ 2)%N); have := ltn_ord n; lia.
have -> : M = \sum_(n < N) x ^+ (n.+1 ^ 2).
  by apply: eq_bigr => n _; congr (_ ^+ (_ ^ 2)%N); rewrite /bump /=; lia.
have -> : (`|(N + 0)%N%:Z - N%:Z| ^ 2 = 0)%N by rewrite addn0 subrr.
by rewrite expr0 /theta; ring.
Qed.

Hypothesis x0 : 0 <= x.

Lemma theta_ge1 N : 1 <= theta x N.
Proof. by rewrite lerDl mulr_ge0 ?ler0n // sumr_ge0 // => n _; apply: exprn_ge0. Qed.

Lemma theta_gt0 N : 0 < theta x N.
Proof. exact: lt_le_trans ltr01 (theta_ge1 N). Qed.

(** n^2 >= 1 + 3 (n - 1), and a geometric sum. *)
Lemma theta_le N : x < 1 -> theta x N <= 1 + 2%:R * (x / (1 - x ^+ 3)).
Proof.
move=> x1; have y1 : 0 < 1 - x ^+ 3 by rewrite subr_gt0 exprn_ilt1.
rewrite lerD2l ler_wpM2l ?ler0n // ler_pdivlMr // mulr_suml.
have geometric : \sum_(n < N) x * (x ^+ 3) ^+ n * (1 - x ^+ 3) = x * (1 - (x ^+ 3) ^+ N).
  elim: N => [|N IH]; first by rewrite big_ord0 expr0 subrr mulr0.
  by rewrite big_ord_recr /= IH [_ ^+ N.+1]exprS; ring.
apply: (@le_trans _ _ (\sum_(n < N) x * (x ^+ 3) ^+ n * (1 - x ^+ 3))); last first.
  by rewrite geometric ler_piMr // lerBlDr lerDl !exprn_ge0.
apply: ler_sum => -[n _] _ /=; rewrite ler_wpM2r ?(ltW y1) // -exprM -exprS.
by rewrite ler_wiXn2l ?(ltW x1) //; nia.
Qed.
End Theta.

(** Keys at distinct positions are some of those of the cube of side 2N + 1 around the target, and
    the cube's sum is a product over axes. *)
Lemma sum_le_axes_in (R : realFieldType) (d : nat) (K : finType) (P : pred K)
    (pos : K -> position d) (w : 'I_d -> int -> R) (t : position d) (N : nat) :
  {in P &, injective pos} -> (forall i z, 0 <= w i z) ->
  (forall k i, P k -> (`|(pos k - t)%R 0%R i| <= N)%N) ->
  \sum_(k | P k) \prod_i w i ((pos k - t) 0 i) <= \prod_i \sum_(j < N + N.+1) w i (j%:Z - N%:Z).
Proof.
move=> posI w0 near; pose side := 'I_(N + N.+1).
rewrite bigA_distr_bigA /=.
have mid : (N < N + N.+1)%N by lia.
have place k i : {j : side | P k -> j%:Z - N%:Z = (pos k - t) 0 i}.
  case Pk: (P k); last by exists (Ordinal mid).
  have zN := near k i Pk; set z := (pos k - t) 0 i in zN *.
  have lt : (`|(z + N%:Z)%R| < N + N.+1)%N by lia.
  by exists (Ordinal lt) => /= _; lia.
pose g k : {ffun 'I_d -> side} := [ffun i => sval (place k i)].
have gE k i : P k -> (g k i)%:Z - N%:Z = (pos k - t) 0 i by rewrite ffunE; case: (place k i).
have gI : {in P &, injective g}.
  by move=> k k' Pk Pk' kk'; apply/posI/(addIr (- t))/rowP => // i; rewrite -!gE // kk'.
rewrite (bigID (mem (g @: P))) /= big_imset //= -[leLHS]addr0 lerD //; last first.
  by apply: sumr_ge0 => f _; apply: prodr_ge0 => i _.
by apply: ler_sum => k Pk; under [leRHS]eq_bigr do rewrite gE //.
Qed.

Section Box.
Variables (R : realFieldType) (d : nat) (K : finType) (pos : K -> position d).
Hypothesis posI : injective pos.

Lemma sum_le_axes (w : 'I_d -> int -> R) (t : position d) (N : nat) :
  (forall i z, 0 <= w i z) -> within pos t N ->
  \sum_k \prod_i w i ((pos k - t) 0 i) <= \prod_i \sum_(j < N + N.+1) w i (j%:Z - N%:Z).
Proof. by move=> w0 near; apply: sum_le_axes_in => // k k' _ _; apply: posI. Qed.

(** With weights x_i^(z^2), which may differ from axis to axis. *)
Lemma sum_le_theta (x : 'I_d -> R) (t : position d) (N : nat) :
  (forall i, 0 <= x i) -> within pos t N ->
  \sum_k \prod_i x i ^+ (`|(pos k - t)%R 0%R i| ^ 2) <= \prod_i theta (x i) N.
Proof.
move=> x0 near; under [leRHS]eq_bigr do rewrite -theta_axis.
apply: (sum_le_axes (w := fun i z => x i ^+ (`|z| ^ 2))) => // i z.
exact: exprn_ge0.
Qed.
End Box.

(** ** The scores *)
Section Scores.
Variables (R : realFieldType) (d : nat).

Lemma sqnormE (p : position d) : (sqnorm p)%:R = \sum_i (p 0 i)%:~R ^+ 2 :> R.
Proof.
rewrite natr_sum; apply: eq_bigr => i _.
by rewrite natrX natr_absz intr_norm real_normK ?num_real.
Qed.

Lemma sqnorm0 : sqnorm (0 : position d) = 0%N.
Proof. by rewrite /sqnorm big1 // => i _; rewrite mxE. Qed.

(** The square is completed on every axis. *)
Lemma diagonal_score (alpha : 'I_d -> R) (Delta p : position d) :
  (diagonal_request alpha Delta *m (diagonal_encoding R p)^T) 0 0
  = - (\sum_i alpha i * ((p - Delta) 0 i)%:~R ^+ 2) + \sum_i alpha i * (Delta 0 i)%:~R ^+ 2.
Proof.
rewrite /diagonal_request /diagonal_encoding tr_row_mx mul_row_col !mxE -sumrN -!big_split /=.
apply: eq_bigr => i _; rewrite !mxE rmorphB /=.
by move: (alpha i) (p 0 i)%:~R (Delta 0 i)%:~R => a y z; ring.
Qed.

Lemma quadratic_score (alpha : R) (Delta p : position d) :
  (request alpha Delta *m (encoding R p)^T) 0 0
  = - (alpha * (sqnorm (p - Delta))%:R) + alpha * (sqnorm Delta)%:R.
Proof.
rewrite /request /encoding -scalemxAl mxE tr_row_mx mul_row_col mul1mx tr_scalar_mx.
rewrite mxE mxE eqxx mulr1n mulrDr !sqnormE !mulr_sumr mxE -!sumrN -!big_split /=.
rewrite mulr_sumr -big_split; apply: eq_bigr => i _; rewrite !mxE rmorphB /=.
by move: (p 0 i)%:~R (Delta 0 i)%:~R => y z; ring.
Qed.
End Scores.

(** ** The leak *)
Section Leak.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (d : nat).
Variables (K : finType) (pos : K -> position d).
Implicit Types (q Delta : position d) (t k : K).

Lemma diagonal_weights_relative (alpha : 'I_d -> R) q Delta t : pos t = q + Delta ->
  diagonal_weights e alpha pos q Delta
  =1 softmax e (fun k => - \sum_i alpha i * ((pos k - pos t) 0 i)%:~R ^+ 2).
Proof.
move=> tE k; rewrite -(softmax_constant expo _ (\sum_i alpha i * (Delta 0 i)%:~R ^+ 2)).
by apply: softmax_eq => j; rewrite diagonal_score tE opprD addrA.
Qed.

Lemma quadratic_weights_diagonal (alpha : R) q Delta :
  quadratic_weights e alpha pos q Delta =1 diagonal_weights e (fun=> alpha) pos q Delta.
Proof.
apply: softmax_eq => k; rewrite quadratic_score diagonal_score !sqnormE.
by rewrite -!mulr_sumr.
Qed.

(** 1/S, with S the sum of the weights relative to the target's. *)
Lemma diagonal_target (alpha : 'I_d -> R) q Delta t : pos t = q + Delta ->
  diagonal_weights e alpha pos q Delta t
  = (\sum_k \prod_i e (- alpha i) ^+ (`|(pos k - pos t)%R 0%R i| ^ 2))^-1.
Proof.
move=> tE; rewrite (diagonal_weights_relative alpha tE) softmax_target //; last first.
  by rewrite subrr big1 ?oppr0 // => i _; rewrite mxE expr0n mulr0.
congr (_^-1); apply: eq_bigr => k _; rewrite -sumrN exp_sum //; apply: eq_bigr => i _.
by rewrite -exp_natl // natrX natr_absz intr_norm real_normK ?num_real // mulrN mulrC.
Qed.

Lemma exp_neg_lt1 (alpha : R) : 0 < alpha -> e (- alpha) < 1.
Proof. by move=> alpha0; rewrite -(exp0 expo) exp_lt // oppr_lt0. Qed.

Hypothesis posI : injective pos.

Lemma diagonal_leak (alpha : 'I_d -> R) q Delta t N : pos t = q + Delta -> within pos (pos t) N ->
  1 - diagonal_weights e alpha pos q Delta t <= 1 - (\prod_i theta (e (- alpha i)) N)^-1.
Proof.
move=> tE near; rewrite (diagonal_target alpha tE) lerD2l lerN2.
have x0 i : 0 <= e (- alpha i) by apply/ltW/exp_gt0.
have S0 : 0 < \sum_k \prod_i e (- alpha i) ^+ (`|(pos k - pos t)%R 0%R i| ^ 2).
  rewrite (bigD1 t) //= ltr_wpDr ?prodr_gt0 // => [|i _]; last by rewrite exprn_gt0 ?exp_gt0.
  by apply: sumr_ge0 => k _; apply: prodr_ge0 => i _; apply: exprn_ge0.
by rewrite lef_pV2 ?sum_le_theta // posrE // prodr_gt0 // => i _; apply: theta_gt0.
Qed.

Lemma quadratic_leak (alpha : R) q Delta t N : pos t = q + Delta -> within pos (pos t) N ->
  1 - quadratic_weights e alpha pos q Delta t <= 1 - (theta (e (- alpha)) N ^+ d)^-1.
Proof.
move=> tE near; rewrite quadratic_weights_diagonal.
by apply: le_trans (diagonal_leak (fun=> alpha) tE near) _; rewrite prodr_const card_ord.
Qed.

(** Some N is large enough. *)
Lemma reach t : exists N, within pos (pos t) N.
Proof.
exists (\max_k \max_i `|(pos k - pos t)%R 0%R i|)%N => k i.
apply: leq_trans (leq_bigmax k).
exact: (leq_bigmax (F := fun i => `|(pos k - pos t)%R 0%R i|%N) i).
Qed.

(** One more axis raises 1 - (1 + y)^-d by less than y. *)
Lemma power_leak (y : R) m : 0 <= y -> 1 - ((1 + y) ^+ m)^-1 <= m%:R * y.
Proof.
move=> y0; have c0 : 0 < 1 + y by rewrite ltr_wpDr ?ltr01.
rewrite -exprVn; set z := (1 + y)^-1; have z0 : 0 <= z by rewrite invr_ge0 ltW.
have z1 : z <= 1 by rewrite invf_le1 // lerDl.
have zy : 1 - z <= y.
  have -> : 1 - z = y * z by rewrite /z; field; rewrite gt_eqF.
  by rewrite ler_piMr.
elim: m => [|m IH]; first by rewrite expr0 subrr mul0r.
have -> : 1 - z ^+ m.+1 = (1 - z ^+ m) * z + (1 - z) by rewrite exprSr; ring.
have -> : m.+1%:R * y = m%:R * y + y by rewrite mulrSr mulrDl mul1r.
by rewrite lerD // (le_trans _ IH) // ler_piMr // subr_ge0 exprn_ile1.
Qed.

Lemma quadratic_leak_uniform (alpha : R) q Delta t : 0 < alpha -> pos t = q + Delta ->
  1 - quadratic_weights e alpha pos q Delta t
  <= d%:R * (2%:R * (e (- alpha) / (1 - e (- alpha) ^+ 3))).
Proof.
move=> alpha0 tE; have [N near] := reach t.
have x0 : 0 <= e (- alpha) by apply/ltW/exp_gt0.
have x1 := exp_neg_lt1 alpha0; set y := 2%:R * _.
have y0 : 0 <= y by rewrite mulr_ge0 ?ler0n // divr_ge0 // subr_ge0 exprn_ile1 // ltW.
apply: le_trans (quadratic_leak alpha tE near) (le_trans _ (power_leak d y0)).
have t0 := theta_gt0 x0 N; have t1 : theta (e (- alpha)) N <= 1 + y by apply: theta_le.
have y1 := lt_le_trans t0 t1.
by rewrite lerD2l lerN2 lef_pV2 ?posrE ?exprn_gt0 // ler_expn2r ?nnegrE // ltW.
Qed.
End Leak.

(** On the cube of side 2N + 1 around the target the bound is attained. *)
Section Cube.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (d N : nat).

Definition cube (q : position d) (k : {ffun 'I_d -> 'I_(N + N.+1)}) : position d :=
  q + \row_i ((k i)%:Z - N%:Z).

Lemma cube_inj q : injective (cube q).
Proof.
move=> k k' /addrI/rowP kk'; apply/ffunP => i; apply/val_inj.
by have := kk' i; rewrite !mxE => /addIr/eqP; rewrite eqz_nat => /eqP.
Qed.

Lemma cube_within q : within (cube q) q N.
Proof. by move=> k i; rewrite /cube addrC addKr mxE; have := ltn_ord (k i); move: (nat_of_ord _) => j; lia. Qed.

Lemma cube_leak (alpha : R) (q Delta : position d) :
  exists2 t, cube (q + Delta) t = q + Delta
    & 1 - quadratic_weights e alpha (cube (q + Delta)) q Delta t
      = 1 - (theta (e (- alpha)) N ^+ d)^-1.
Proof.
have mid : (N < N + N.+1)%N by lia.
have tE : cube (q + Delta) [ffun=> Ordinal mid] = q + Delta.
  by rewrite /cube -[RHS]addr0; congr +%R; apply/rowP => i; rewrite !mxE ffunE subrr.
exists [ffun=> Ordinal mid] => //; rewrite quadratic_weights_diagonal (diagonal_target expo _ tE).
congr (1 - _^-1).
have power (c : R) : c ^+ d = \prod_(i < d) c by rewrite prodr_const card_ord.
pose w (i : 'I_d) (j : 'I_(N + N.+1)) := e (- alpha) ^+ (`|j%:Z - N%:Z| ^ 2).
have -> : theta (e (- alpha)) N ^+ d = \prod_i \sum_j w i j.
  by rewrite power; apply: eq_bigr => i _; apply/esym/theta_axis.
rewrite tE bigA_distr_bigA; apply: eq_bigr => k _; apply: eq_bigr => i _.
have -> : cube (q + Delta) k - (q + Delta) = \row_i ((k i)%:Z - N%:Z) by rewrite addrC addKr.
by rewrite mxE.
Qed.
End Cube.
