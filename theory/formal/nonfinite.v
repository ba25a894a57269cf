(** * Infinities and NaN spread (T9) *)
From Coq Require Import ZArith Bool.
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
End Ieee.
