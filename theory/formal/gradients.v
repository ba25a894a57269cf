(** * The gradient in the sharpness is a covariance (T4) *)
From mathcomp Require Import all_ssreflect all_algebra boolp classical_sets functions reals topology.
From mathcomp Require Import normedtype sequences derive realfun exp ring.
From Formal Require Import names setting expsums.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory numFieldNormedType.Exports.
Local Open Scope ring_scope.

Section Sharpness.
Variables (R : realType) (n : nat) (s X : 'I_n.+1 -> R).

Let Z := expsum (fun=> 1) s.
Let M := expsum X s.

Lemma Z_gt0 alpha : 0 < Z alpha.
Proof.
rewrite /Z /expsum big_ord_recl ltr_wpDr ?mul1r ?expR_gt0 // sumr_ge0 // => i _.
by rewrite mul1r ltW // expR_gt0.
Qed.

Lemma seenE alpha : \sum_k softmax (@expR R) (fun k => alpha * s k) k * X k = M alpha / Z alpha.
Proof.
have -> : Z alpha = \sum_j expR (alpha * s j) by apply: eq_bigr => j _; rewrite mul1r mulrC.
rewrite mulr_suml; apply: eq_bigr => k _; rewrite /softmax mulrC mulrA; congr (_ * expR _ / _).
by rewrite mulrC.
Qed.

Lemma covariance alpha :
  let p := softmax (@expR R) (fun k => alpha * s k) in
  is_derive alpha (1 : R^o) (fun a : R^o => (\sum_k softmax (@expR R) (fun k => a * s k) k * X k) : R^o)
    (\sum_k p k * s k * X k - (\sum_k p k * s k) * \sum_k p k * X k).
Proof.
move=> p; have DZ := expsum_derive (fun=> 1) s alpha; have DM := expsum_derive X s alpha.
have z0 : Z alpha != 0 by rewrite gt_eqF // Z_gt0.
have D := is_deriveM DM (is_deriveV z0 DZ).
have -> : (fun a : R^o => (\sum_k softmax (@expR R) (fun k => a * s k) k * X k) : R^o)
    = (expsum X s : R^o -> R^o) * (fun a => (Z a)^-1) by apply/funext => a; rewrite seenE.
apply: is_derive_eq D _.
have EZ : Z alpha = \sum_j expR (alpha * s j) by apply: eq_bigr => j _; rewrite mul1r mulrC.
have mean (Y : 'I_n.+1 -> R) : \sum_k p k * Y k = expsum Y s alpha / Z alpha.
  rewrite mulr_suml; apply: eq_bigr => k _; rewrite /p /softmax -EZ mulrC mulrA.
  by rewrite [alpha * _]mulrC.
have -> : \sum_k p k * s k * X k = expsum (fun k => X k * s k) s alpha / Z alpha.
  by rewrite -mean; apply: eq_bigr => k _; rewrite -mulrA [s k * _]mulrC.
rewrite !mean /GRing.scale /=.
have -> : expsum (fun i => 1 * s i) s alpha = expsum s s alpha.
  by apply: eq_bigr => i _; rewrite mul1r.
move: (expsum _ _ _) (expsum _ _ _) (expsum _ _ _) (Z alpha) z0 => a b c z z0.
by field.
Qed.
End Sharpness.
