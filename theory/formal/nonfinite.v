(** * Infinities and NaN spread, finite pixels do not (T9) *)
From Coq Require Import Reals ZArith Bool Lia.
From Flocq Require Import Core BinarySingleNaN.
From Formal Require Import setting_floats setting_ieee.

Section Ieee.
Variables (prec emax : Z) (hp : Prec_gt_0 prec) (he : Prec_lt_emax prec emax) (m : mode).
Notation number := (binary_float prec emax).
Notation plus := (@Bplus prec emax hp he m).
Notation mult := (@Bmult prec emax hp he m).

Lemma mult_nonfinite (x y : number) : is_finite x = false \/ is_finite y = false ->
  is_finite (mult x y) = false.
Proof. destruct x, y; simpl; intros [h|h]; try discriminate; trivial. Qed.

Lemma plus_nonfinite (x y : number) : is_finite x = false \/ is_finite y = false ->
  is_finite (plus x y) = false.
Proof.
destruct x, y; simpl; intros [h|h]; try discriminate; trivial; destruct (Bool.eqb _ _); trivial.
Qed.

Lemma zero_times_nonfinite s (x : number) : is_finite x = false ->
  is_nan (mult (B754_zero s) x) = true.
Proof. destruct x; simpl; intro h; try discriminate; trivial. Qed.

Lemma mult_nan (x y : number) : is_nan x = true -> is_nan (mult x y) = true.
Proof. destruct x, y; simpl; intro h; try discriminate; trivial. Qed.

Lemma plus_nan (x y : number) : is_nan x = true \/ is_nan y = true -> is_nan (plus x y) = true.
Proof. destruct x, y; simpl; intros [h|h]; try discriminate; trivial. Qed.

Lemma sum_nonfinite {A} (z : A -> number) a order : leaf a order -> is_finite (z a) = false ->
  is_finite (ieee_sum prec emax hp he m z order) = false.
Proof.
intros ha hz; induction order as [b|l IHl r IHr]; simpl in *; [subst; trivial|].
apply plus_nonfinite; tauto.
Qed.

Lemma sum_nan {A} (z : A -> number) a order : leaf a order -> is_nan (z a) = true ->
  is_nan (ieee_sum prec emax hp he m z order) = true.
Proof.
intros ha hz; induction order as [b|l IHl r IHr]; simpl in *; [subst; trivial|].
apply plus_nan; tauto.
Qed.

Lemma dense_nonfinite w X W b keys terms h c k :
  is_finite (X k c) = false -> leaf k (keys h) -> leaf (Some (h, c)) terms ->
  is_finite (dense_output prec emax hp he m w X W b keys terms) = false.
Proof.
intros hX hk ht; apply (sum_nonfinite _ (Some (h, c))); trivial.
apply mult_nonfinite; left; apply (sum_nonfinite _ k); trivial; apply mult_nonfinite; right; trivial.
Qed.

Lemma dense_nan w X W b keys terms h c k s :
  is_finite (X k c) = false -> w h k = B754_zero s -> leaf k (keys h) ->
  leaf (Some (h, c)) terms -> is_nan (dense_output prec emax hp he m w X W b keys terms) = true.
Proof.
intros hX hw hk ht; apply (sum_nan _ (Some (h, c))); trivial; apply mult_nan.
apply (sum_nan _ k); trivial; rewrite hw; apply zero_times_nonfinite; trivial.
Qed.

(** ** Finite pixels: the sign of zero apart, one-hot heads read one pixel *)
Lemma same_refl (x : number) : same x x.
Proof. left; trivial. Qed.

Lemma same_sym (x y : number) : same x y -> same y x.
Proof. intros [->|[s [s' [-> ->]]]]; [left; trivial | right; exists s', s; auto]. Qed.

Lemma same_trans (x y z : number) : same x y -> same y z -> same x z.
Proof.
intros [->|[s [s' [-> ->]]]] [h|[u [u' [h h']]]]; subst.
- left; trivial.
- right; exists u, u'; auto.
- right; exists s, s'; auto.
- right; exists s, u'; auto.
Qed.

Lemma same_real (x y : number) : is_finite x = true -> is_finite y = true -> B2R x = B2R y ->
  same x y.
Proof.
intros fx fy h; destruct (is_finite_strict x) eqn:sx, (is_finite_strict y) eqn:sy.
- left; apply B2R_inj; trivial.
- destruct x, y; try discriminate; exfalso; revert h; simpl; intro h.
  apply eq_0_F2R in h; destruct s; discriminate.
- destruct x, y; try discriminate; exfalso; revert h; simpl; intro h; symmetry in h.
  apply eq_0_F2R in h; destruct s0; discriminate.
- destruct x, y; try discriminate; right; exists s, s0; auto.
Qed.

Lemma plus_same (x x' y y' : number) : same x x' -> same y y' -> same (plus x y) (plus x' y').
Proof.
intros [->|[s [s' [-> ->]]]] [->|[u [u' [-> ->]]]].
- apply same_refl.
- destruct x' as [a| | |]; simpl; try apply same_refl; right.
  destruct (Bool.eqb a u), (Bool.eqb a u'), m, a; simpl; eauto.
- destruct y' as [a| | |]; simpl; try apply same_refl; right.
  destruct (Bool.eqb s a), (Bool.eqb s' a), m, s, s'; simpl; eauto.
- simpl; right; destruct (Bool.eqb s u), (Bool.eqb s' u'), m, s, s'; simpl; eauto.
Qed.

Lemma mult_same (x x' y : number) : is_finite y = true -> same x x' -> same (mult x y) (mult x' y).
Proof.
intros fy [->|[s [s' [-> ->]]]]; [apply same_refl|].
destruct y; try discriminate; simpl; right; eauto.
Qed.

Lemma sum_same {A} (z z' : A -> number) order : (forall a, same (z a) (z' a)) ->
  same (ieee_sum prec emax hp he m z order) (ieee_sum prec emax hp he m z' order).
Proof. intro h; induction order as [a|l IHl r IHr]; simpl; [trivial | apply plus_same; trivial]. Qed.

Lemma one_times (x : number) : is_finite x = true -> same (mult Bone x) x.
Proof.
intro fx; assert (C := Bmult_correct prec emax hp he m Bone x).
rewrite Bone_correct, Rmult_1_l, round_generic in C;
  [| apply valid_rnd_round_mode | apply generic_format_B2R].
rewrite Rlt_bool_true in C by apply abs_B2R_lt_emax; destruct C as [r [f _]].
apply same_real; trivial; rewrite f, is_finite_Bone, fx; trivial.
Qed.

Lemma zero_times s (x : number) : is_finite x = true -> exists s', mult (B754_zero s) x = B754_zero s'.
Proof. destruct x; simpl; try discriminate; eauto. Qed.

Lemma plus_zero (x y : number) s : same y (B754_zero s) -> same (plus x y) x /\ same (plus y x) x.
Proof.
intros h; assert (z : same (plus x (B754_zero s)) x /\ same (plus (B754_zero s) x) x).
  destruct x as [a| | |]; simpl; try (split; apply same_refl); split; right;
    [destruct (Bool.eqb a s), m, a | destruct (Bool.eqb s a), m, s]; simpl; eauto.
split; [apply same_trans with (2 := proj1 z) | apply same_trans with (2 := proj2 z)];
  apply plus_same; trivial; apply same_refl.
Qed.

Lemma sum_one_hot (z : nat -> number) t x order : same (z t) x ->
  (forall k, k <> t -> exists s, same (z k) (B754_zero s)) ->
  (count (Nat.eqb t) order = 0%nat -> exists s, same (ieee_sum prec emax hp he m z order) (B754_zero s)) /\
  (count (Nat.eqb t) order = 1%nat -> same (ieee_sum prec emax hp he m z order) x).
Proof.
intros zt off; induction order as [k|l [l0 l1] r [r0 r1]]; simpl.
  destruct (Nat.eqb t k) eqn:E; split; intro h; try discriminate.
    apply Nat.eqb_eq in E; subst; trivial.
  apply off; intro; subst; rewrite Nat.eqb_refl in E; discriminate.
split; intro h.
  destruct (l0 ltac:(lia)) as [s hs], (r0 ltac:(lia)) as [u hu]; exists s.
  apply same_trans with (2 := hs); apply (plus_zero _ _ u hu).
destruct (count _ l) as [|[|]] eqn:E; try lia.
  destruct (l0 eq_refl) as [s hs]; apply same_trans with (2 := r1 ltac:(lia)).
  apply (plus_zero _ _ s hs).
destruct (r0 ltac:(lia)) as [s hs]; apply same_trans with (2 := l1 eq_refl).
apply (plus_zero _ _ s hs).
Qed.

Lemma dense_finite (w X W : nat -> nat -> number) b keys terms (t : nat -> nat) :
  (forall k c, is_finite (X k c) = true) -> (forall h c, is_finite (W h c) = true) ->
  (forall h, ieee_one_hot hp he (t h) (w h)) -> (forall h, count (Nat.eqb (t h)) (keys h) = 1%nat) ->
  same (dense_output prec emax hp he m w X W b keys terms)
    (ieee_sum prec emax hp he m
      (fun a => match a with Some (h, c) => mult (X (t h) c) (W h c) | None => b end) terms).
Proof.
intros fX fW hot once; apply sum_same; intros [[h c]|]; [|apply same_refl].
apply mult_same; trivial; destruct (hot h) as [w1 w0].
apply (sum_one_hot _ (t h)); trivial; [rewrite w1; apply one_times; trivial|].
intros k hk; destruct (w0 k hk) as [s ->], (zero_times s (X k c) (fX k c)) as [s' ->].
exists s'; apply same_refl.
Qed.
End Ieee.
