(** * Cosines (T5): the gap of a circle, and what it makes of the scores *)
From mathcomp Require Import all_ssreflect all_algebra boolp classical_sets reals sequences exp.
From mathcomp Require Import trigo zify ring.
From Formal Require Import names setting exponential circles reals.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Cosine.
Variable R : realType.
Implicit Types (phi : R) (m n N : nat).

Lemma cos_le y z : 0 <= y -> y <= z -> z <= pi -> cos z <= cos y :> R.
Proof.
move=> y0 yz zp; rewrite leNgt ltr_cos ?in_itv /= ?y0 ?(le_trans yz) ?(le_trans y0) ?zp //.
by rewrite -leNgt.
Qed.

(** m steps lose at least m times what one does, up to half of the circle. *)
Lemma cos_steps phi m : 0 <= phi -> m%:R * phi <= pi -> m%:R * (1 - cos phi) <= 1 - cos (m%:R * phi).
Proof.
move=> phi0; elim: m => [|m IH] le; first by rewrite !mul0r cos0 subrr.
have le' : m%:R * phi <= pi by apply: le_trans le; rewrite ler_wpM2r // ler_nat.
have step : 1 - cos phi <= cos (m%:R * phi) - cos (m.+1%:R * phi).
  set a := phi / 2%:R; have aa : phi = a *+ 2 by rewrite /a mulr2n -splitr.
  have a0 : 0 <= a by rewrite divr_ge0 ?ler0n.
  have half : m.+1%:R * a <= pi / 2%:R.
    by rewrite /a mulrA ler_wpM2r ?invr_ge0 ?ler0n.
  have pi2 : pi / 2%:R <= pi :> R by rewrite ler_pdivrMr ?ltr0n // mulr_natr mulr2n lerDl ltW // pi_gt0.
  have ma0 : 0 <= m%:R * a by rewrite mulr_ge0 ?ler0n.
  have a1 : a <= m.+1%:R * a by rewrite -[leLHS]mul1r ler_wpM2r // ler1n.
  have am : m%:R * a <= m.+1%:R * a by rewrite ler_wpM2r // ler_nat.
  have sa : 0 <= sin a by rewrite sin_ge0_pi // a0 (le_trans a1) // (le_trans half).
  have sm : 0 <= sin (m%:R * a) by rewrite sin_ge0_pi // ma0 (le_trans am) // (le_trans half).
  have cm : 0 <= cos (m.+1%:R * a).
    rewrite cos_ge0_pihalf // half andbT (le_trans _ (le_trans ma0 am)) // oppr_le0.
    by rewrite divr_ge0 ?ler0n // ltW // pi_gt0.
  rewrite -subr_ge0.
  have -> : cos (m%:R * phi) - cos (m.+1%:R * phi) - (1 - cos phi)
      = 4%:R * (sin a * (cos (m.+1%:R * a) * sin (m%:R * a))).
    rewrite aa !mulrnAr !cos_mulr2n.
    have -> : m.+1%:R * a = a + m%:R * a by rewrite mulrSr mulrDl mul1r addrC.
    rewrite !cosD; set b := m%:R * a.
    have ca : cos a ^+ 2 = 1 - sin a ^+ 2 by rewrite cos2sin2.
    have cb : cos b ^+ 2 = 1 - sin b ^+ 2 by rewrite cos2sin2.
    move: (cos a) (sin a) (cos b) (sin b) ca cb => u v w z ca cb.
    have -> : w ^+ 2 *+ 2 - 1 - ((u * w - v * z) ^+ 2 *+ 2 - 1) - (1 - (u ^+ 2 *+ 2 - 1))
        = 2%:R * (w ^+ 2 - u ^+ 2 * w ^+ 2 - v ^+ 2 * z ^+ 2 - 1 + u ^+ 2) + 4%:R * (u * w * v * z).
      by ring.
    rewrite ca cb; ring: ca cb.
  by rewrite !mulr_ge0 ?ler0n.
rewrite [leLHS](_ : _ = m%:R * (1 - cos phi) + (1 - cos phi)); last by rewrite mulrSr mulrDl mul1r.
have -> : 1 - cos (m.+1%:R * phi) = (1 - cos (m%:R * phi)) + (cos (m%:R * phi) - cos (m.+1%:R * phi)).
  by rewrite addrA subrK.
by apply: lerD => //; apply: IH.
Qed.

Definition angle n : R := 2%:R * pi / n%:R.

Lemma angle_le_pi n m : (0 < n)%N -> (2 * m <= n)%N -> m%:R * angle n <= pi.
Proof.
move=> n0 mn; rewrite /angle mulrA ler_pdivrMr ?ltr0n // mulrA [m%:R * _]mulrC -natrM.
by rewrite [leRHS]mulrC ler_wpM2r ?ler_nat // ltW // pi_gt0.
Qed.

Lemma angle_ge0 n : 0 <= angle n.
Proof. by rewrite divr_ge0 ?mulr_ge0 ?ler0n // ltW // pi_gt0. Qed.

(** The gap falls as the circle grows. *)
Lemma gap_falls n N : (2 <= n)%N -> (n <= N)%N ->
  0 < 1 - cos (angle N) /\ 1 - cos (angle N) <= 1 - cos (angle n).
Proof.
move=> n2 nN; have n0 : (0 < n)%N by apply: leq_trans n2.
have N0 : (0 < N)%N by apply: leq_trans nN.
have ap k : (2 <= k)%N -> angle k <= pi.
  by move=> k2; rewrite -[angle k]mul1r (@angle_le_pi k 1) // (leq_trans _ k2).
have aN : 0 < angle N by rewrite divr_gt0 ?mulr_gt0 ?ltr0n ?pi_gt0.
have le : angle N <= angle n.
  by rewrite ler_wpM2l ?mulr_ge0 ?ler0n ?(ltW (pi_gt0 _)) // lef_pV2 ?posrE ?ltr0n // ler_nat.
have aNp := ap N (leq_trans n2 nN); split.
  by rewrite subr_gt0 -[X in _ < X]cos0 ltr_cos ?in_itv /= ?lexx ?(ltW aN) ?(ltW (pi_gt0 _)).
by rewrite lerD2l lerN2 cos_le ?angle_ge0 ?ap.
Qed.

Lemma cosine_falls n N m : (m < n)%N -> (n <= N)%N ->
  (minn m (n - m))%:R * (1 - cos (angle N)) <= 1 - cos (m%:R * angle n).
Proof.
move=> mn nN; have n0 : (0 < n)%N by apply: leq_ltn_trans mn.
case: (posnP m) => [->|m0]; first by rewrite min0n !mul0r cos0 subrr.
have n2 : (2 <= n)%N by apply: leq_ltn_trans mn.
have [_ gap] := gap_falls n2 nN.
have small k : (2 * k <= n)%N -> k%:R * (1 - cos (angle N)) <= 1 - cos (k%:R * angle n).
  move=> kn; apply: le_trans (cos_steps (angle_ge0 n) (angle_le_pi n0 kn)).
  by rewrite ler_wpM2l ?ler0n.
have [le|gt] := leqP (2 * m) n.
  by have /minn_idPl -> : (m <= n - m)%N; [lia | apply: small].
have /minn_idPr -> : (n - m <= m)%N by lia.
have -> : cos (m%:R * angle n) = cos ((n - m)%:R * angle n).
  rewrite natrB ?(ltnW mn) // mulrBl -[RHS]cosN opprB -(cosD2pi (m%:R * angle n - _)).
  congr cos; rewrite mulr2n /angle; have : n%:R != 0 :> R by rewrite pnatr_eq0 -lt0n.
  by move: (n%:R : R) (m%:R : R) pi => a b p a0; field.
by apply: small; lia.
Qed.
End Cosine.

Lemma cosine_leak (R : realType) (alpha : R) (d N : nat) (n : 'I_d -> nat) (t : position d)
    (c : {dffun forall i, 'I_(n i)}) :
  (0 < d)%N -> 0 < alpha -> (2 <= N)%N -> (forall i, n i <= N)%N ->
  (forall i, (c i)%:Z = (t 0%R i %% (n i)%:Z)%Z) ->
  1 - softmax expR (fun k : {dffun forall i, 'I_(n i)} =>
        \sum_i alpha / (1 - cos (angle R N)) * cos (((k i)%:Z - t 0 i)%:~R * angle R (n i))) c
  < 1 - ((1 - expR (- alpha)) / (1 + expR (- alpha))) ^+ d.
Proof.
move=> d0 alpha0 N2 nN cE; have [gap0 _] := gap_falls R N2 (leqnn N).
have n0 i : (0 < n i)%N by apply: leq_ltn_trans (leq0n (c i)) (ltn_ord _).
apply: (@circle_leak _ _ (expR_exponential R) alpha d n (fun i z =>
  alpha / (1 - cos (angle R N)) * cos (z%:~R * angle R (n i)))) => // [i z|i m mn].
  congr (_ * _); rewrite rmorphD /= mulrDl -[RHS]cosD2pi; congr (cos (_ + _)).
  by rewrite mulrC /angle mulr2n divfK ?pnatr_eq0 -?lt0n // mulrDl mul1r.
rewrite mul0r cos0 -mulrBr -mulrA ler_pM2l // mulrC ler_pdivlMr //.
exact: cosine_falls.
Qed.
