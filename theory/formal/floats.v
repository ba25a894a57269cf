(** * Saturated softmax in floating point (T8) *)
From Coq Require Import Reals ZArith Bool Lra Lia.
From Flocq Require Import Core Plus_error Relative.
From Formal Require Import setting_floats.
Open Scope R_scope.

(** ** The threshold

    All four gaps are n times 0.69315, a little more than ln 2, with n = 1 - emin. *)
Lemma exp_lower x n : 0 <= x -> sum_f_R0 (fun i => / INR (fact i) * x ^ i) n <= exp x.
Proof.
intro x0; unfold exp; destruct (exist_exp x) as [l h]; simpl.
apply sum_incr; trivial; intro i; apply Rmult_le_pos; [|apply pow_le; trivial].
left; apply Rinv_0_lt_compat, INR_fact_lt_0.
Qed.

Definition ln2_up : R := 69315 / 100000.

Lemma exp_ln2_up : 2 * (1 + / IZR (2 ^ 19)) <= exp ln2_up.
Proof.
pose (y := 69315 / 800000); pose (a := 109050805 / 100000000).
assert (h : a <= exp y).
  apply Rle_trans with (2 := exp_lower y 5 ltac:(unfold y; lra)).
  unfold a, y; simpl; lra.
replace (exp ln2_up) with (exp y ^ 8).
  apply Rle_trans with (a ^ 8); [unfold a; simpl; lra | apply pow_incr; unfold a in *; lra].
replace ln2_up with (y + y + (y + y) + (y + y + (y + y))) by (unfold ln2_up, y; lra).
rewrite !exp_plus; ring.
Qed.

Lemma exp_small n : (25 <= n)%nat ->
  (1 + 40 * bpow radix2 (-24)) * exp (- (INR n * ln2_up)) < (/ 2) ^ n.
Proof.
intro n25; assert (h2 : 0 < 2 ^ n) by (apply pow_lt; lra).
assert (E : 2 ^ n * (1 + INR n * / IZR (2 ^ 19)) <= exp (INR n * ln2_up)).
  apply Rle_trans with (2 ^ n * (1 + / IZR (2 ^ 19)) ^ n).
    apply Rmult_le_compat_l; [lra|]; apply poly; simpl; lra.
  rewrite <- Rpow_mult_distr; apply Rle_trans with (exp ln2_up ^ n).
    apply pow_incr; split; [simpl; lra | exact exp_ln2_up].
  clear; right; induction n as [|n IH]; [simpl; rewrite Rmult_0_l, exp_0; trivial|].
  rewrite S_INR, Rmult_plus_distr_r, Rmult_1_l, exp_plus, <- IH; simpl; ring.
assert (25 <= INR n) by (apply le_INR in n25; simpl in n25; lra).
assert (e0 := exp_pos (INR n * ln2_up)); rewrite exp_Ropp, pow_inv.
set (x := exp _) in *; apply Rmult_lt_reg_r with (x * 2 ^ n); [apply Rmult_lt_0_compat; trivial|].
replace (_ * / x * (x * 2 ^ n)) with (2 ^ n * (1 + 40 * bpow radix2 (-24))) by (field; lra).
replace (/ 2 ^ n * (x * 2 ^ n)) with x by (field; lra).
apply Rlt_le_trans with (2 := E), Rmult_lt_compat_l; trivial; simpl; lra.
Qed.

Lemma bpow_half n : bpow radix2 (- Z.of_nat n) = (/ 2) ^ n.
Proof.
induction n as [|n IH]; trivial; rewrite Nat2Z.inj_succ.
replace (- Z.succ (Z.of_nat n))%Z with (-1 + - Z.of_nat n)%Z by lia.
rewrite bpow_plus, IH; reflexivity.
Qed.

(** ** Numbers of a format *)
Section Format.
Variables (F : precision) (flush : bool).
Hypotheses (prec1 : (1 < prec F)%Z) (normal1 : (emin F + prec F <= 1)%Z).
Local Instance prec_positive : Prec_gt_0 (prec F).
Proof. unfold Prec_gt_0; lia. Qed.
Local Instance valid : Valid_exp (exponents F).
Proof. unfold exponents; typeclasses eauto. Qed.
Local Instance monotone : Monotone_exp (exponents F).
Proof. unfold exponents; typeclasses eauto. Qed.

Notation fl := (fl F flush).
Notation format := (format F).
Notation stored := (stored F flush).

Lemma nearest_format x : format x -> nearest F x = x.
Proof. intro h; apply round_generic; typeclasses eauto || trivial. Qed.

Lemma nearest_le x y : x <= y -> nearest F x <= nearest F y.
Proof. intro; apply round_le; typeclasses eauto || trivial. Qed.

Lemma format_nearest x : format (nearest F x).
Proof. apply generic_format_round; typeclasses eauto. Qed.

Lemma fl_stored x : stored x -> fl x = x.
Proof.
intros [hf hn]; unfold setting_floats.fl; rewrite nearest_format by trivial.
destruct flush; trivial; simpl; destruct (hn eq_refl) as [->|h].
  destruct (Rlt_bool _ _); trivial.
rewrite Rlt_bool_false; trivial.
Qed.

Lemma fl_ge0 x : 0 <= x -> 0 <= fl x.
Proof.
intro h; unfold setting_floats.fl; destruct (_ && _); [lra|].
rewrite <- (nearest_format 0) by apply generic_format_0; apply nearest_le; trivial.
Qed.

(** Below a number of the format a result stays below it, flushed or not. *)
Lemma fl_le x y : 0 <= y -> format y -> x <= y -> fl x <= y.
Proof.
intros y0 yf h; unfold setting_floats.fl; destruct (_ && _); [lra|].
rewrite <- (nearest_format y yf); apply nearest_le; trivial.
Qed.

(** Above a normal one it stays above. *)
Lemma fl_ge x y : format y -> smallest_normal F <= y -> y <= x -> y <= fl x.
Proof.
intros yf yn h; unfold setting_floats.fl.
assert (yx : y <= nearest F x) by (rewrite <- (nearest_format y yf); apply nearest_le; trivial).
assert (n0 : 0 < smallest_normal F) by apply bpow_gt_0.
rewrite Rlt_bool_false; [rewrite andb_false_r; trivial | rewrite Rabs_pos_eq; lra].
Qed.

Lemma stored0 : stored 0.
Proof. split; [apply generic_format_0 | left; trivial]. Qed.

Lemma format_power k : (emin F <= k)%Z -> format (bpow radix2 k).
Proof.
intro h; apply generic_format_bpow; trivial; unfold exponents, FLT_exp; lia.
Qed.

Lemma normal_le1 : smallest_normal F <= 1.
Proof. change 1 with (bpow radix2 0); apply bpow_le; lia. Qed.

Lemma stored1 : stored 1.
Proof.
split; [change 1 with (bpow radix2 0); apply format_power; lia|].
right; rewrite Rabs_R1; apply normal_le1.
Qed.

(** Integers of at most prec bits, times a power of two. *)
Lemma format_scaled j k : (emin F <= k)%Z -> (Z.abs j <= 2 ^ prec F)%Z ->
  format (IZR j * bpow radix2 k).
Proof.
intros hk hj; assert (Z.abs j = 2 ^ prec F \/ Z.abs j < 2 ^ prec F)%Z as [h|h] by lia.
  assert (hb : format (bpow radix2 (prec F + k))) by (apply format_power; lia).
  rewrite bpow_plus, <- IZR_Zpower in hb by lia; change (Zpower radix2 (prec F)) with (2 ^ prec F)%Z in hb.
  destruct (Zabs_spec j) as [[_ e]|[_ e]]; rewrite e in h; [rewrite h; trivial|].
  replace j with (- (2 ^ prec F))%Z by lia; rewrite opp_IZR, Ropp_mult_distr_l_reverse.
  apply generic_format_opp; trivial.
apply generic_format_FLT; apply FLT_spec with (Defs.Float radix2 j k); simpl; trivial.
Qed.

Lemma stored_integer j : (Z.abs j <= 2 ^ prec F)%Z -> stored (IZR j).
Proof.
intro hj; split; [rewrite <- (Rmult_1_r (IZR j)); apply (format_scaled j 0); lia|].
intros _; destruct (Z.eq_dec j 0) as [->|h]; [left; trivial | right].
rewrite <- abs_IZR; apply Rle_trans with (1 := normal_le1); apply IZR_le; lia.
Qed.

(** At most half the smallest positive number is rounded to zero, the tie included; a number of the
    format below the smallest positive one is zero. *)
Lemma nearest_half x : 0 <= x <= / 2 -> ZnearestE x = 0%Z.
Proof.
intros [h0 [h1|h1]]; [apply Znearest_imp; rewrite Rminus_0_r, Rabs_pos_eq; lra|].
rewrite h1; unfold Znearest; replace (Zfloor (/ 2)) with 0%Z.
  rewrite Rcompare_Eq by (simpl; lra); reflexivity.
symmetry; apply Zfloor_imp; simpl; lra.
Qed.

Lemma tail_is_zero y : 0 <= y <= smallest F / 2 -> fl y = 0.
Proof.
intros [h0 h1]; enough (E : nearest F y = 0) by
  (unfold setting_floats.fl; rewrite E; destruct (_ && _); trivial).
destruct (Req_dec y 0) as [->|n0]; [apply nearest_format, generic_format_0|].
assert (hs : smallest F / 2 = bpow radix2 (emin F - 1)).
  unfold smallest, Zminus; rewrite bpow_plus; simpl; lra.
assert (hc : cexp radix2 (exponents F) y = emin F).
  unfold cexp, exponents, FLT_exp; assert (mag radix2 y <= emin F)%Z; [|lia].
  apply mag_le_bpow; trivial; rewrite Rabs_pos_eq by trivial.
  apply Rle_lt_trans with (1 := h1); rewrite hs; apply bpow_lt; lia.
unfold nearest, round, scaled_mantissa; rewrite hc, nearest_half; [apply F2R_0|].
assert (b := bpow_gt_0 radix2 (- emin F)); split; [apply Rmult_le_pos; lra|].
apply Rle_trans with (bpow radix2 (emin F - 1) * bpow radix2 (- emin F)).
  apply Rmult_le_compat_r; lra.
rewrite <- bpow_plus; replace (emin F - 1 + - emin F)%Z with (-1)%Z by lia; simpl; lra.
Qed.

Lemma multiple_of_smallest y : format y -> exists j, y = IZR j * smallest F.
Proof.
intro h; apply generic_format_FIX_FLT in h; destruct (FIX_format_generic _ _ _ h) as [f hf he].
exists (Fnum f); rewrite hf; unfold F2R; rewrite he; trivial.
Qed.

Lemma below_smallest y : format y -> 0 <= y < smallest F -> y = 0.
Proof.
intros hf [h0 h1]; destruct (multiple_of_smallest y hf) as [j ->].
assert (s0 : 0 < smallest F) by apply bpow_gt_0.
assert (IZR j < 1) by nra; assert (-1 < IZR j) by nra.
assert (j < 1)%Z by (apply lt_IZR; trivial); assert (-1 < j)%Z by (apply lt_IZR; trivial).
replace j with 0%Z by lia; ring.
Qed.

(** ** Sums *)
Lemma sum_ext {A} (z z' : A -> R) order : (forall a, z a = z' a) ->
  sum F flush z order = sum F flush z' order.
Proof. intro h; induction order as [a|l IHl r IHr]; simpl; [trivial | rewrite IHl, IHr; trivial]. Qed.

(** A sum whose terms are zero, but for one of them. *)
Lemma sum_one (z : nat -> R) t v order : stored v ->
  (forall k, z k = if Nat.eqb t k then v else 0) ->
  (count (Nat.eqb t) order = 0%nat -> sum F flush z order = 0) /\
  (count (Nat.eqb t) order = 1%nat -> sum F flush z order = v).
Proof.
intros hv hz; induction order as [a|l [l0 l1] r [r0 r1]]; simpl.
  rewrite hz; destruct (Nat.eqb t a); split; trivial; discriminate.
split; intro h.
  rewrite l0, r0 by lia; rewrite Rplus_0_l; apply fl_stored, stored0.
destruct (count _ l) as [|[|]] eqn:E; try lia.
  rewrite l0, r1 by lia; rewrite Rplus_0_l; apply fl_stored, hv.
rewrite l1, r0 by lia; rewrite Rplus_0_r; apply fl_stored, hv.
Qed.

Lemma sum_integers {A} (z : A -> Z) order : (size z order <= 2 ^ prec F)%Z ->
  sum F flush (fun a => IZR (z a)) order = IZR (exact z order).
Proof.
assert (sz : forall t, (Z.abs (exact z t) <= size z t)%Z).
  unfold size; induction t as [a|l hl r hr]; simpl; lia.
unfold size in *; induction order as [a|l IHl r IHr]; simpl; intro h; trivial.
assert (hl := sz l); assert (hr := sz r).
rewrite IHl, IHr, <- plus_IZR by lia; apply fl_stored, stored_integer; lia.
Qed.

(** ** One-hot weights *)
Lemma head_copies (w X : nat -> R) t order : (forall k, w k = one_hot t k) ->
  stored (X t) -> count (Nat.eqb t) order = 1%nat ->
  sum F flush (fun k => fl (w k * X k)) order = X t.
Proof.
intros hw hX; apply (sum_one _ t (X t)); trivial; intro k; rewrite hw; unfold one_hot.
destruct (Nat.eqb t k) eqn:E.
  apply Nat.eqb_eq in E; subst; rewrite Rmult_1_l; apply fl_stored; trivial.
rewrite Rmult_0_l; apply fl_stored, stored0.
Qed.

Lemma largest_is_0 alpha t s top : 0 < alpha -> 0 <= 1 - 2 * unit_roundoff F ->
  separated F flush alpha t s -> largest s top -> top = 0.
Proof.
intros ha hu [hf [ht hs]] [[k ->] hk]; destruct (Nat.eq_dec k t) as [->|n]; trivial.
assert (h := hk t); rewrite ht in h; destruct (hs k n) as [m [m1 hm]].
assert (0 <= (1 - 2 * unit_roundoff F) * (alpha * m)).
  apply Rmult_le_pos; trivial; apply Rmult_le_pos; lra.
lra.
Qed.

(** The exponentials off the target, before the half unit of underflow. *)
Lemma exponential_off alpha gap t s ex k tail : admissible F ex -> separated F flush alpha t s ->
  k <> t -> 0 < gap -> gap <= (1 - 2 * unit_roundoff F) * alpha -> 0 < 1 - 2 * unit_roundoff F ->
  (1 + 40 * unit_roundoff F) * exp (- gap) < tail ->
  0 <= ex (s k) < tail + smallest F / 2.
Proof.
intros [_ [h0 [_ hex]]] [_ [_ hs]] n g0 hg hu htail; split; [apply h0|].
destruct (hs k n) as [m [m1 hm]].
assert (a0 : 0 < alpha) by nra.
assert (sk : s k <= - gap).
  apply Rle_trans with (1 := hm), Ropp_le_contravar, Rle_trans with (1 := hg).
  apply Rmult_le_compat_l; [lra|]; nra.
apply Rle_lt_trans with (1 := hex (s k) ltac:(lra)), Rplus_lt_compat_r.
apply Rle_lt_trans with (2 := htail), Rmult_le_compat_l.
  assert (0 < unit_roundoff F) by apply bpow_gt_0; lra.
destruct sk as [h|h]; [left; apply exp_increasing; trivial | rewrite h; lra].
Qed.
End Format.

(** ** Weights in the format in which they are computed *)
Section Saturated.
Variables (F : precision) (flush reciprocal : bool).
Hypotheses (prec2 : (24 <= prec F)%Z) (emin25 : (emin F <= -24)%Z)
  (normal1 : (emin F + prec F <= 1)%Z).
Variables (ex : R -> R) (alpha : R) (t : nat) (s : nat -> R) (top : R).
Hypotheses (hex : admissible F ex) (hs : separated F flush alpha t s) (htop : largest s top).

Lemma roundoff_small : 0 < unit_roundoff F <= bpow radix2 (-24).
Proof. split; [apply bpow_gt_0 | apply bpow_le; lia]. Qed.

Lemma half_smallest : smallest F / 2 = (/ 2) ^ Z.to_nat (1 - emin F).
Proof.
rewrite <- bpow_half, Z2Nat.id by lia; unfold smallest.
replace (- (1 - emin F))%Z with (emin F + -1)%Z by lia; rewrite bpow_plus; simpl; lra.
Qed.

(** n gaps of 0.69315 make an exponential smaller than 2^-n. *)
Lemma exponentials n : (25 <= n)%nat -> INR n * ln2_up <= (1 - 2 * unit_roundoff F) * alpha ->
  (forall k, ex (fl F flush (s k - top)) = ex (s k)) /\ ex (s t) = 1 /\
  forall k, k <> t -> 0 <= ex (s k) < (/ 2) ^ n + smallest F / 2.
Proof.
intros n25 gap; assert (u := roundoff_small); assert (u24 : bpow radix2 (-24) < / 100) by (simpl; lra).
assert (N25 : 25 <= INR n) by (apply le_INR in n25; simpl in n25; lra).
assert (g0 : 0 < INR n * ln2_up) by (unfold ln2_up; lra).
assert (a0 : 0 < alpha) by nra.
assert (E : top = 0) by (apply (largest_is_0 F flush alpha t s); trivial; lra).
split; [|split].
- intro k; rewrite E, Rminus_0_r, fl_stored; trivial; apply hs.
- destruct hs as [_ [-> _]]; apply hex.
- intros k n0; apply (exponential_off F flush alpha (INR n * ln2_up) t); trivial; try lra.
  apply Rle_lt_trans with (2 := exp_small n n25), Rmult_le_compat_r; [left; apply exp_pos | lra].
Qed.

Lemma softmax_one_hot order :
  INR (Z.to_nat (1 - emin F)) * ln2_up <= (1 - 2 * unit_roundoff F) * alpha ->
  count (Nat.eqb t) order = 1%nat ->
  forall k, computed_softmax F flush reciprocal ex order s top k = one_hot t k.
Proof.
intros gap once; destruct (exponentials (Z.to_nat (1 - emin F)) ltac:(lia) gap) as [eq [peak off]].
assert (z : forall k, ex (fl F flush (s k - top)) = one_hot t k).
  intro k; rewrite eq; unfold one_hot; destruct (Nat.eqb t k) eqn:E.
    apply Nat.eqb_eq in E; subst; trivial.
  apply (below_smallest F); [apply hex |].
  rewrite Nat.eqb_neq in E; destruct (off k ltac:(auto)) as [h0 h1]; split; trivial.
  rewrite <- half_smallest in h1; lra.
intro k; unfold computed_softmax.
assert (s1 := stored1 F flush ltac:(lia) normal1).
destruct (sum_one F flush _ t 1 order s1 z) as [_ total].
rewrite z, total by trivial; unfold Rdiv; rewrite Rinv_1, (fl_stored F flush 1 s1), Rmult_1_r.
unfold one_hot; destruct reciprocal, (Nat.eqb t k); apply fl_stored; trivial; apply stored0.
Qed.
End Saturated.

(** ** Weights that are cast to a half format

    Tails are at most half the smallest number h of the half format, and the sum is followed by
    monotony alone: tails to multiples of h, the peak to multiples of 2^-23. *)
Section Cast.
Variables (H : precision) (flush reciprocal : bool).
Notation fl32 := (fl binary32 flush).
Notation u32 := (unit_roundoff binary32).
Hypotheses (prec1 : (1 < prec H < 22)%Z) (emin25 : (-148 <= emin H <= -24)%Z)
  (normal1 : (emin H + prec H <= 1)%Z).
Variables (ex : R -> R) (alpha : R) (t : nat) (s : nat -> R) (top : R).
Hypotheses (hex : admissible binary32 ex) (hs : separated binary32 flush alpha t s)
  (htop : largest s top).
Let h := smallest H / 2.
Let z k := ex (fl32 (s k - top)).

Let p32 : (1 < prec binary32)%Z. Proof. reflexivity. Qed.
Let n32 : (emin binary32 + prec binary32 <= 1)%Z. Proof. easy. Qed.

Lemma h_power : h = bpow radix2 (emin H - 1).
Proof. unfold h, smallest, Zminus; rewrite bpow_plus; simpl; lra. Qed.

Lemma h_small : 0 < h <= bpow radix2 (-25).
Proof. rewrite h_power; split; [apply bpow_gt_0 | apply bpow_le; lia]. Qed.

Lemma format_tail m : (Z.of_nat m <= 2 ^ 24)%Z -> format binary32 (INR m * h).
Proof.
intro hm; rewrite h_power, INR_IZR_INZ; apply format_scaled; trivial; simpl; lia.
Qed.

Lemma format_peak m : (Z.of_nat m <= 2 ^ 23)%Z -> format binary32 (1 + INR m * bpow radix2 (-23)).
Proof.
intro hm; replace (1 + INR m * bpow radix2 (-23))
  with (IZR (2 ^ 23 + Z.of_nat m) * bpow radix2 (-23)).
  apply format_scaled; [reflexivity | easy |].
  change (2 ^ prec binary32)%Z with (2 ^ 23 + 2 ^ 23)%Z; lia.
rewrite plus_IZR, <- INR_IZR_INZ; simpl; lra.
Qed.

Hypothesis target : z t = 1.
Hypothesis tails : forall k, k <> t -> 0 <= z k <= h.

Lemma tail_at k : Nat.eqb t k = false -> 0 <= z k <= h.
Proof. intro E; apply tails; intro; subst; rewrite Nat.eqb_refl in E; discriminate. Qed.

Lemma sum_tails order : count (Nat.eqb t) order = 0%nat -> (Z.of_nat (leaves order) <= 2 ^ 23)%Z ->
  0 <= sum binary32 flush z order <= INR (leaves order) * h.
Proof.
unfold leaves; induction order as [k|l IHl r IHr]; simpl sum; simpl count; intros none few.
  destruct (Nat.eqb t k) eqn:E; [discriminate|]; simpl; assert (T := tail_at k E); lra.
destruct (IHl ltac:(lia) ltac:(lia)) as [l0 l1], (IHr ltac:(lia) ltac:(lia)) as [r0 r1].
split; [apply fl_ge0; trivial; lra|]; apply fl_le; trivial.
- apply Rmult_le_pos; [apply pos_INR | left; apply h_small].
- apply format_tail; lia.
- rewrite plus_INR; lra.
Qed.

Lemma sum_peak order : count (Nat.eqb t) order = 1%nat -> (Z.of_nat (leaves order) <= 2 ^ 23)%Z ->
  1 <= sum binary32 flush z order <= 1 + INR (leaves order) * bpow radix2 (-23).
Proof.
assert (hg : 0 < h <= bpow radix2 (-23)).
  destruct h_small as [h0 h1]; split; trivial; apply Rle_trans with (1 := h1), bpow_le; lia.
assert (f1 : format binary32 1) by (apply (stored1 binary32 flush); trivial).
unfold leaves; induction order as [k|l IHl r IHr]; simpl sum; simpl count; intros once few.
  destruct (Nat.eqb t k) eqn:E; [|discriminate].
  apply Nat.eqb_eq in E; subst k; rewrite target; simpl; lra.
assert (tree : forall P B m n, 1 <= P <= 1 + INR m * bpow radix2 (-23) -> 0 <= B <= INR n * h ->
    (Z.of_nat (m + n) <= 2 ^ 23)%Z ->
    1 <= fl32 (P + B) <= 1 + INR (m + n) * bpow radix2 (-23)).
  intros P B m n hP hB hmn; assert (0 <= INR n) by apply pos_INR.
  assert (INR n * h <= INR n * bpow radix2 (-23)) by (apply Rmult_le_compat_l; lra).
  split; [apply fl_ge; trivial; [apply normal_le1; trivial | lra]|].
  assert (m0 : 0 <= INR (m + n) * bpow radix2 (-23)).
    apply Rmult_le_pos; [apply pos_INR | apply bpow_ge_0].
  apply fl_le; trivial; [lra | apply format_peak; trivial | rewrite plus_INR; lra].
destruct (count (Nat.eqb t) l) as [|[|]] eqn:E; try lia.
  assert (B := sum_tails l E); assert (P := IHr ltac:(lia) ltac:(lia)); unfold leaves in B.
  rewrite Rplus_comm, Nat.add_comm; apply tree; [exact P | apply B; lia | lia].
assert (B := sum_tails r ltac:(lia)); assert (P := IHl eq_refl ltac:(lia)); unfold leaves in B.
apply tree; [exact P | apply B; lia | lia].
Qed.

(** Half-way between 1 and the number before it, the tie goes to 1. *)
Hypothesis odd : Z.even (2 ^ prec H - 1) = false.
Notation u := (unit_roundoff H).

Lemma u_inverse : u * IZR (2 ^ prec H) = 1 /\ 0 < u <= / 2.
Proof.
unfold unit_roundoff; rewrite bpow_opp, <- (IZR_Zpower radix2) by lia.
change (Zpower radix2 (prec H)) with (2 ^ prec H)%Z.
assert (p0 : (2 <= 2 ^ prec H)%Z) by (change 2%Z with (2 ^ 1)%Z at 1; apply Z.pow_le_mono_r; lia).
apply IZR_le in p0; split; [field; lra|]; split; [apply Rinv_0_lt_compat; lra|].
apply Rinv_le_contravar; lra.
Qed.

Lemma tie_to_one : nearest H (1 - u / 2) = 1.
Proof.
destruct u_inverse as [E u0]; assert (P : (1 < prec H)%Z) by lia.
assert (hm : mag radix2 (1 - u / 2) = 0%Z :> Z).
  apply mag_unique_pos; simpl; lra.
assert (hc : cexp radix2 (exponents H) (1 - u / 2) = (- prec H)%Z).
  unfold cexp, exponents, FLT_exp; rewrite hm; lia.
unfold nearest, round, scaled_mantissa; rewrite hc, Z.opp_involutive.
rewrite <- (IZR_Zpower radix2) by lia; change (Zpower radix2 (prec H)) with (2 ^ prec H)%Z.
replace ((1 - u / 2) * IZR (2 ^ prec H)) with (IZR (2 ^ prec H) - / 2) by lra.
assert (hf : Zfloor (IZR (2 ^ prec H) - / 2) = (2 ^ prec H - 1)%Z).
  apply Zfloor_imp; rewrite Z.sub_add, minus_IZR; lra.
assert (ht : ZnearestE (IZR (2 ^ prec H) - / 2) = (2 ^ prec H)%Z).
  unfold Znearest; rewrite hf, minus_IZR, Rcompare_Eq, odd by lra; simpl.
  apply Zceil_imp; rewrite minus_IZR; lra.
rewrite ht; unfold F2R; simpl; fold u; lra.
Qed.

Lemma cast_peak y : 1 - u / 2 <= y <= 1 -> fl H flush y = 1.
Proof.
intros [y0 y1]; assert (P : (1 < prec H)%Z) by lia.
assert (f1 := stored1 H flush P normal1).
assert (E : nearest H y = 1).
  apply Rle_antisym.
    rewrite <- (nearest_format H 1) by apply f1; apply nearest_le; trivial.
  rewrite <- tie_to_one; apply nearest_le; trivial.
unfold fl; rewrite E, Rabs_R1, Rlt_bool_false by (apply normal_le1; trivial).
rewrite andb_false_r; trivial.
Qed.

Lemma before_one : format binary32 (1 - u / 2) /\ smallest_normal binary32 <= 1 - u / 2.
Proof.
destruct u_inverse as [E u0]; split.
  replace (1 - u / 2) with (IZR (2 ^ (prec H + 1) - 1) * bpow radix2 (- (prec H + 1))).
    assert (p1 : (0 < 2 ^ (prec H + 1))%Z) by (apply Z.pow_pos_nonneg; lia).
    assert (p2 : (2 ^ (prec H + 1) <= 2 ^ 24)%Z) by (apply Z.pow_le_mono_r; lia).
    apply format_scaled; [reflexivity | simpl; lia | change (prec binary32) with 24%Z; lia].
  rewrite Z.opp_add_distr, bpow_plus, minus_IZR, Z.pow_add_r, mult_IZR by lia.
  change (bpow radix2 (- prec H)) with u; change (bpow radix2 (- (1))) with (/ 2).
  change (2 ^ 1)%Z with 2%Z; rewrite <- E at 2; field.
apply Rle_trans with (bpow radix2 (-1)); [apply bpow_le; easy | simpl; lra].
Qed.

Lemma cast_one_hot order : (Z.of_nat (leaves order) <= 2 ^ (22 - prec H))%Z ->
  count (Nat.eqb t) order = 1%nat ->
  forall k, fl H flush (computed_softmax binary32 flush reciprocal ex order s top k) = one_hot t k.
Proof.
intros few once k; destruct u_inverse as [E u0].
assert (few' : (Z.of_nat (leaves order) <= 2 ^ 23)%Z).
  apply Z.le_trans with (1 := few), Z.pow_le_mono_r; lia.
destruct (sum_peak order once few') as [S1 S2]; unfold computed_softmax; fold z.
set (S := sum binary32 flush z order) in *; fold (z k).
assert (SU : S <= 1 + u / 2).
  apply Rle_trans with (1 := S2), Rplus_le_compat_l.
  apply Rle_trans with (IZR (2 ^ (22 - prec H)) * bpow radix2 (-23)).
    apply Rmult_le_compat_r; [apply bpow_ge_0 | rewrite INR_IZR_INZ; apply IZR_le; trivial].
  change (2 ^ (22 - prec H))%Z with (Zpower radix2 (22 - prec H)).
  rewrite IZR_Zpower, <- bpow_plus by lia; unfold unit_roundoff.
  replace (22 - prec H + -23)%Z with (- prec H + -1)%Z by lia; rewrite bpow_plus; simpl; lra.
destruct before_one as [bf bn]; assert (f1 : format binary32 1) by (apply (stored1 binary32 flush); trivial).
assert (I : 1 - u / 2 <= / S <= 1).
  split; [|rewrite <- Rinv_1; apply Rinv_le_contravar; lra].
  apply Rmult_le_reg_r with S; [lra|]; rewrite Rinv_l by lra; nra.
assert (I32 : 1 - u / 2 <= fl32 (/ S) <= 1).
  split; [apply fl_ge; trivial; lra | apply fl_le; trivial; lra].
destruct (Nat.eqb t k) eqn:Ek; unfold one_hot; rewrite Ek.
  apply Nat.eqb_eq in Ek; subst k; rewrite target; apply cast_peak; destruct reciprocal.
    rewrite Rmult_1_l; split; [apply fl_ge; trivial; lra | apply fl_le; trivial; lra].
  unfold Rdiv; rewrite Rmult_1_l; trivial.
assert (T := tail_at k Ek); assert (hf : format binary32 h).
  rewrite <- (Rmult_1_l h); apply (format_tail 1); simpl; lia.
apply tail_is_zero; [lia | fold h]; destruct reciprocal.
  split; [apply fl_ge0; trivial; apply Rmult_le_pos; lra | apply fl_le; trivial; nra].
split; [apply fl_ge0; trivial; apply Rmult_le_pos; lra|].
apply fl_le; trivial; [lra|]; unfold Rdiv; nra.
Qed.
End Cast.

(** ** The four formats *)
Lemma one_hot_binary32 : one_hot_from binary32 (10398 / 100).
Proof.
intros flush reciprocal ex order s top t alpha ha hex hs htop once.
apply (softmax_one_hot binary32) with (alpha := alpha); trivial; try easy.
rewrite INR_IZR_INZ; unfold unit_roundoff, ln2_up; simpl; lra.
Qed.

Lemma one_hot_binary64 : one_hot_from binary64 (74514 / 100).
Proof.
intros flush reciprocal ex order s top t alpha ha hex hs htop once.
apply (softmax_one_hot binary64) with (alpha := alpha); trivial; try easy.
rewrite INR_IZR_INZ, Z2Nat.id by easy; unfold unit_roundoff, ln2_up; simpl; lra.
Qed.

(** Off the target a computed binary32 exponential is a multiple of its smallest number, hence at
    most half the smallest number of the half format. *)
Lemma half_tails H flush ex alpha t s top :
  (-148 <= emin H <= -24)%Z ->
  INR (Z.to_nat (1 - emin H)) * ln2_up <= (1 - 2 * unit_roundoff binary32) * alpha ->
  admissible binary32 ex -> separated binary32 flush alpha t s -> largest s top ->
  ex (fl binary32 flush (s t - top)) = 1 /\
  forall k, k <> t -> 0 <= ex (fl binary32 flush (s k - top)) <= smallest H / 2.
Proof.
intros he gap hex hs htop.
destruct (exponentials binary32 flush ltac:(easy) ex alpha t s top hex hs htop
  (Z.to_nat (1 - emin H)) ltac:(lia) gap) as [eq [peak off]].
split; [rewrite eq; trivial | intros k n; rewrite eq]; destruct (off k n) as [h0 h1]; split; trivial.
rewrite <- bpow_half, Z2Nat.id in h1 by lia.
destruct (multiple_of_smallest binary32 (ex (s k)) (proj1 hex (s k))) as [j E]; rewrite E in *.
assert (hs2 : smallest H / 2 = IZR (2 ^ (emin H - 1 + 149)) * smallest binary32).
  change (2 ^ (emin H - 1 + 149))%Z with (Zpower radix2 (emin H - 1 + 149)).
  rewrite IZR_Zpower by lia; unfold smallest; rewrite <- bpow_plus.
  replace (emin H - 1 + 149 + emin binary32)%Z with (emin H + -1)%Z by (simpl; lia).
  rewrite bpow_plus; simpl; lra.
replace (bpow radix2 (- (1 - emin H))) with (smallest H / 2) in h1.
  rewrite hs2 in *; assert (s0 : 0 < smallest binary32) by apply bpow_gt_0.
  apply Rmult_le_compat_r; [lra|]; apply IZR_le, Z.lt_succ_r, lt_IZR; rewrite succ_IZR; nra.
unfold smallest; replace (- (1 - emin H))%Z with (emin H + -1)%Z by lia.
rewrite bpow_plus; simpl; lra.
Qed.

Lemma one_hot_half H gap : (1 < prec H < 22)%Z -> (-148 <= emin H <= -24)%Z ->
  (emin H + prec H <= 1)%Z -> Z.even (2 ^ prec H - 1) = false ->
  (forall alpha, gap <= alpha ->
     INR (Z.to_nat (1 - emin H)) * ln2_up <= (1 - 2 * unit_roundoff binary32) * alpha) ->
  one_hot_after_cast H gap (2 ^ (22 - prec H)).
Proof.
intros hp he hn odd hgap flush reciprocal ex order s top t alpha ha hex hs htop once few.
destruct (half_tails H flush ex alpha t s top he (hgap alpha ha) hex hs htop) as [peak off].
apply cast_one_hot; trivial.
Qed.

Lemma one_hot_binary16 : one_hot_after_cast binary16 (1733 / 100) (2 ^ 11).
Proof.
apply (one_hot_half binary16); try easy; intros alpha ha.
rewrite INR_IZR_INZ; unfold unit_roundoff, ln2_up; simpl; lra.
Qed.

Lemma one_hot_bfloat16 : one_hot_after_cast bfloat16 (9289 / 100) (2 ^ 14).
Proof.
apply (one_hot_half bfloat16); try easy; intros alpha ha.
rewrite INR_IZR_INZ; unfold unit_roundoff, ln2_up; simpl; lra.
Qed.

(** ** The layer on integers *)
Lemma layer_is_convolution F flush (weight : nat -> nat -> R) (order : nat -> tree nat)
    (t : nat -> nat) (X W : nat -> nat -> Z) (b : Z) terms :
  (1 < prec F)%Z -> (emin F + prec F <= 1)%Z ->
  (forall h k, weight h k = one_hot (t h) k) ->
  (forall h, count (Nat.eqb (t h)) (order h) = 1%nat) ->
  (forall k c, (Z.abs (X k c) <= 2 ^ prec F)%Z) ->
  let head h c := sum F flush (fun k => fl F flush (weight h k * IZR (X k c))) (order h) in
  let term a := match a with
    Some (h, c) => fl F flush (head h c * IZR (W h c)) | None => IZR b end in
  let exact_term a := match a with Some (h, c) => (X (t h) c * W h c)%Z | None => b end in
  (size exact_term terms <= 2 ^ prec F)%Z -> sum F flush term terms = IZR (exact exact_term terms).
Proof.
intros hp hn hw once hX head term exact_term.
assert (copy : forall h c, head h c = IZR (X (t h) c)).
  intros h c; apply (head_copies F flush (weight h) (fun k => IZR (X k c)) (t h)); trivial.
  apply stored_integer; trivial.
assert (sz : forall r, (Z.abs (exact exact_term r) <= size exact_term r)%Z).
  unfold size; induction r as [a|l hl r hr]; simpl; lia.
unfold size in *; induction terms as [[[h c]|]|l IHl r IHr]; simpl; intro few; trivial.
  rewrite copy, <- mult_IZR; apply fl_stored, stored_integer; trivial.
assert (hl := sz l); assert (hr := sz r).
rewrite IHl, IHr, <- plus_IZR by lia; apply fl_stored, stored_integer; trivial; lia.
Qed.

(** ** An exponential that is admissible: the correctly rounded one *)
Lemma rounded_exponential F : (1 < prec F)%Z -> (emin F + prec F <= 1)%Z ->
  admissible F (fun x => nearest F (exp x)).
Proof.
intros hp hn; assert (P : Prec_gt_0 (prec F)) by (unfold Prec_gt_0; lia).
assert (V : Valid_exp (exponents F)) by (unfold exponents; typeclasses eauto).
repeat split.
- intro x; apply format_nearest; trivial.
- intro x; rewrite <- (nearest_format F 0) by apply generic_format_0.
  apply nearest_le; trivial; left; apply exp_pos.
- rewrite exp_0; apply nearest_format; apply (stored1 F true); trivial.
- intros x _; assert (e0 := exp_pos x); assert (s0 : 0 < smallest F) by apply bpow_gt_0.
  assert (u0 : 0 < unit_roundoff F) by apply bpow_gt_0.
  assert (E := error_le_half_ulp radix2 (exponents F) (fun z => negb (Z.even z)) (exp x)).
  fold (nearest F (exp x)) in E; apply Rabs_le_inv in E.
  assert (ux : 0 < unit_roundoff F * exp x) by (apply Rmult_lt_0_compat; trivial).
  enough (ulp radix2 (exponents F) (exp x) <= 2 * unit_roundoff F * exp x + smallest F) by lra.
  destruct (Rlt_or_le (exp x) (bpow radix2 (emin F + prec F))) as [h|h].
    unfold exponents; rewrite ulp_FLT_small; trivial; [fold (smallest F); lra|].
    rewrite Rabs_pos_eq; lra.
  assert (h' : bpow radix2 (emin F + prec F - 1) <= exp x).
    apply Rle_trans with (2 := h), bpow_le; lia.
  assert (U := ulp_FLT_le radix2 (emin F) (prec F) (exp x)); rewrite Rabs_pos_eq in U by lra.
  specialize (U h'); replace (1 - prec F)%Z with (1 + - prec F)%Z in U by lia.
  rewrite bpow_plus in U; fold (unit_roundoff F) in U; simpl (bpow radix2 1) in U.
  unfold exponents; lra.
Qed.

(** ** Scores that are separated: correctly rounded ones *)
Lemma rounded_scores F flush alpha t (m : nat -> Z) :
  (1 < prec F)%Z -> (emin F + prec F <= 1)%Z -> 1 <= alpha -> m t = 0%Z ->
  (forall k, k <> t -> (1 <= m k)%Z) ->
  separated F flush alpha t (fun k => - fl F flush (alpha * IZR (m k))) /\
  largest (fun k => - fl F flush (alpha * IZR (m k))) 0.
Proof.
intros hp hn ha mt hm; assert (P : Prec_gt_0 (prec F)) by (unfold Prec_gt_0; lia).
assert (V : Valid_exp (exponents F)) by (unfold exponents; typeclasses eauto).
assert (s0 := stored0 F flush); assert (s1 := stored1 F flush hp hn).
assert (at_t : fl F flush (alpha * IZR (m t)) = 0).
  rewrite mt, Rmult_0_r; apply fl_stored; trivial.
assert (off : forall k, k <> t -> 1 <= alpha * IZR (m k) /\
    fl F flush (alpha * IZR (m k)) = nearest F (alpha * IZR (m k)) /\
    1 <= nearest F (alpha * IZR (m k))).
  intros k hk; assert (h := IZR_le _ _ (hm k hk)); assert (1 <= alpha * IZR (m k)) by nra.
  assert (N : 1 <= nearest F (alpha * IZR (m k))).
    rewrite <- (nearest_format F 1) by apply s1; apply nearest_le; trivial.
  split; trivial; split; trivial; unfold fl; rewrite Rlt_bool_false, andb_false_r; trivial.
  rewrite Rabs_pos_eq by lra; apply Rle_trans with (2 := N), normal_le1; trivial.
split; [split; [|split]|].
- intro k; destruct (Nat.eq_dec k t) as [->|hk]; [rewrite at_t, Ropp_0; trivial|].
  destruct (off k hk) as [h1 [-> h2]]; split.
    apply generic_format_opp, format_nearest; trivial.
  intros _; right; rewrite Rabs_Ropp, Rabs_pos_eq by lra.
  apply Rle_trans with (2 := h2), normal_le1; trivial.
- rewrite at_t, Ropp_0; trivial.
- intros k hk; exists (IZR (m k)); split; [apply (IZR_le 1), hm; trivial|].
  destruct (off k hk) as [h1 [-> h2]]; apply Ropp_le_contravar; set (x := alpha * IZR (m k)) in *.
  assert (E := error_le_half_ulp radix2 (exponents F) (fun z => negb (Z.even z)) x).
  fold (nearest F x) in E; apply Rabs_le_inv in E.
  assert (U := ulp_FLT_le radix2 (emin F) (prec F) x); rewrite Rabs_pos_eq in U by lra.
  assert (n1 : bpow radix2 (emin F + prec F - 1) <= x).
    apply Rle_trans with (2 := h1), (normal_le1 F hn).
  specialize (U n1); replace (1 - prec F)%Z with (1 + - prec F)%Z in U by lia.
  rewrite bpow_plus in U; fold (unit_roundoff F) in U; simpl (bpow radix2 1) in U.
  unfold exponents in E; assert (0 < unit_roundoff F) by apply bpow_gt_0; nra.
- split; [exists t; rewrite at_t; ring|]; intro k; destruct (Nat.eq_dec k t) as [->|hk].
    rewrite at_t; lra.
  destruct (off k hk) as [_ [-> h]]; lra.
Qed.

(** ** 46 is not enough *)
Lemma forty_six flush reciprocal (s : nat -> R) : s 0%nat = 0 -> s 1%nat = - (46) ->
  computed_softmax binary32 flush reciprocal (fun x => nearest binary32 (exp x))
    (Node (Leaf 0%nat) (Leaf 1%nat)) s 0 1 <> 0.
Proof.
intros s0 s1; assert (p : (1 < prec binary32)%Z) by easy.
assert (n : (emin binary32 + prec binary32 <= 1)%Z) by easy.
assert (f : forall k, (-126 <= k)%Z ->
    format binary32 (bpow radix2 k) /\ smallest_normal binary32 <= bpow radix2 k).
  intros k hk; split; [apply format_power; trivial; simpl; lia | apply bpow_le; simpl; lia].
assert (stored46 : stored binary32 flush (- (46))).
  rewrite <- opp_IZR; apply stored_integer; easy.
unfold computed_softmax; simpl sum; rewrite s0, s1, !Rminus_0_r.
rewrite (fl_stored _ _ _ stored46), (fl_stored _ _ _ (stored0 binary32 flush)), exp_0.
rewrite (nearest_format binary32 1) by (apply (stored1 binary32 flush); trivial).
set (z := nearest binary32 (exp (- (46)))).
assert (h3 : forall m, exp (INR m) <= 3 ^ m).
  induction m as [|m IH]; [simpl; rewrite exp_0; lra|].
  rewrite S_INR, exp_plus; simpl pow; rewrite Rmult_comm.
  apply Rmult_le_compat; trivial; try (left; apply exp_pos); exact exp_le_3.
assert (z1 : bpow radix2 (-73) <= z).
  destruct (f (-73)%Z ltac:(easy)) as [f73 _]; rewrite <- (nearest_format binary32 _ f73).
  apply nearest_le; trivial; rewrite exp_Ropp; apply Rle_trans with (/ 3 ^ 46); [simpl; lra|].
  apply Rinv_le_contravar; [apply exp_pos|]; assert (h := h3 46%nat); rewrite INR_IZR_INZ in h.
  exact h.
assert (z2 : z <= 1).
  rewrite <- (nearest_format binary32 1) by (apply (stored1 binary32 flush); trivial).
  apply nearest_le; trivial; rewrite <- exp_0; left; apply exp_increasing; lra.
set (S := fl binary32 flush (1 + z)).
assert (z0 : 0 < bpow radix2 (-73)) by apply bpow_gt_0.
assert (S1 : 1 <= S).
  destruct (f 0%Z ltac:(easy)) as [f0 n0]; simpl in f0, n0; apply fl_ge; trivial; lra.
assert (S2 : S <= 2).
  destruct (f 1%Z ltac:(easy)) as [f1 _]; simpl in f1; apply fl_le; trivial; lra.
assert (half : / 2 <= / S) by (apply Rinv_le_contravar; lra).
assert (r : / 2 <= fl binary32 flush (/ S)).
  destruct (f (-1)%Z ltac:(easy)) as [f1 n1]; simpl in f1, n1; apply fl_ge; trivial.
assert (small : bpow radix2 (-74) = bpow radix2 (-73) * / 2).
  change (-74)%Z with (-73 + -1)%Z; rewrite bpow_plus; simpl; lra.
destruct (f (-74)%Z ltac:(easy)) as [f74 n74]; apply Rgt_not_eq.
destruct reciprocal; (apply Rlt_le_trans with (bpow radix2 (-74)); [apply bpow_gt_0|];
  apply fl_ge; trivial; rewrite small; apply Rmult_le_compat; lra).
Qed.

(** ** Sums in any order (T7): no addition underflows, and each multiplies by at most 1 + u *)
Lemma sum_error F {A} (z : A -> R) order : (1 < prec F)%Z -> (forall a, format F (z a)) ->
  format F (sum F false z order) /\
  Rabs (sum F false z order - total z order)
  <= ((1 + unit_roundoff F) ^ (leaves order - 1) - 1) * total (fun a => Rabs (z a)) order.
Proof.
intros hp hz; assert (P : Prec_gt_0 (prec F)) by (unfold Prec_gt_0; lia).
set (u := unit_roundoff F); assert (u0 : 0 < u) by apply bpow_gt_0.
assert (ne : forall o : tree A, (1 <= leaves o)%nat).
  unfold leaves; induction o as [a|l hl r hr]; simpl; lia.
assert (size : forall o : tree A, Rabs (total z o) <= total (fun a => Rabs (z a)) o).
  induction o as [a|l hl r hr]; simpl; [lra|].
  apply Rle_trans with (1 := Rabs_triang _ _); lra.
assert (size0 : forall o : tree A, 0 <= total (fun a => Rabs (z a)) o).
  intro o; apply Rle_trans with (2 := size o), Rabs_pos.
induction order as [a|l [fl_l IHl] r [fl_r IHr]]; simpl.
  split; [apply hz|]; rewrite Rminus_diag_eq, Rabs_R0 by trivial; simpl; lra.
split; [apply format_nearest; trivial|].
destruct (FLT_plus_error_N_ex radix2 (emin F) (prec F) (fun x => negb (Z.even x)) _ _ fl_l fl_r)
  as [eps [he E]].
assert (eps_u : Rabs eps <= u).
  assert (ro : u_ro radix2 (prec F) = u).
    unfold u_ro, u, unit_roundoff; rewrite bpow_plus; simpl; lra.
  rewrite ro in he; apply Rle_trans with (1 := he).
  apply Rmult_le_reg_r with (1 + u); [lra|]; unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra; nra.
change (fl F false (sum F false z l + sum F false z r))
  with (round radix2 (FLT_exp (emin F) (prec F)) ZnearestE (sum F false z l + sum F false z r)).
rewrite E; clear E he.
set (sl := sum F false z l) in *; set (sr := sum F false z r) in *.
set (tl := total z l) in *; set (tr := total z r) in *.
assert (Al := size0 l); assert (Ar := size0 r); assert (Tl := size l); assert (Tr := size r).
fold tl in Tl; fold tr in Tr.
set (al := total (fun a => Rabs (z a)) l) in *; set (ar := total (fun a => Rabs (z a)) r) in *.
unfold leaves in *; simpl.
assert (nl := ne l); assert (nr := ne r).
set (m := count (fun _ => true) l) in *; set (n := count (fun _ => true) r) in *.
assert (pow1 : forall i j, (i <= j)%nat -> (1 + u) ^ i <= (1 + u) ^ j) by (intros; apply Rle_pow; lra || trivial).
assert (step : forall i, (1 <= i)%nat -> (1 + u) * ((1 + u) ^ (i - 1) - 1) + u = (1 + u) ^ i - 1).
  intros i hi; destruct i as [|i]; [lia|]; simpl; rewrite Nat.sub_0_r; ring.
replace ((sl + sr) * (1 + eps) - (tl + tr))
  with (((sl - tl) + (sr - tr)) * (1 + eps) + (tl + tr) * eps) by ring.
apply Rle_trans with (1 := Rabs_triang _ _); rewrite !Rabs_mult.
assert (one : Rabs (1 + eps) <= 1 + u).
  apply Rle_trans with (1 := Rabs_triang _ _); rewrite Rabs_R1; lra.
assert (D : Rabs (sl - tl + (sr - tr)) <= ((1 + u) ^ (m - 1) - 1) * al + ((1 + u) ^ (n - 1) - 1) * ar).
  apply Rle_trans with (1 := Rabs_triang _ _); lra.
assert (T : Rabs (tl + tr) <= al + ar) by (apply Rle_trans with (1 := Rabs_triang _ _); lra).
apply Rle_trans with
  ((((1 + u) ^ (m - 1) - 1) * al + ((1 + u) ^ (n - 1) - 1) * ar) * (1 + u) + (al + ar) * u).
  apply Rplus_le_compat; apply Rmult_le_compat; trivial; apply Rabs_pos.
replace (_ * (1 + u) + (al + ar) * u)
  with (((1 + u) * ((1 + u) ^ (m - 1) - 1) + u) * al + ((1 + u) * ((1 + u) ^ (n - 1) - 1) + u) * ar)
  by ring.
rewrite !step by trivial; assert (M := pow1 m (m + n - 1)%nat ltac:(lia)).
assert (N := pow1 n (m + n - 1)%nat ltac:(lia)).
rewrite Rmult_plus_distr_l; apply Rplus_le_compat; apply Rmult_le_compat_r; lra.
Qed.
