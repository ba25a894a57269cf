(** * What rounding does to one softmax, and to what a head sees (T7) *)
From Coq Require Import Reals ZArith Bool Lra Lia.
From Flocq Require Import Core Plus_error Relative.
From Formal Require Import setting_floats floats.
Open Scope R_scope.

Lemma growth_ge0 u n : 0 <= u -> 0 <= growth u n.
Proof. intro u0; unfold growth; assert (h := pow_R1_Rle (1 + u) n ltac:(lra)); lra. Qed.

Lemma growth_le u m n : 0 <= u -> (m <= n)%nat -> growth u m <= growth u n.
Proof. intros u0 mn; unfold growth; apply Rplus_le_compat_r, Rle_pow; lra || trivial. Qed.

Lemma growth_S u n : growth u (S n) = growth u n * (1 + u) + u.
Proof. unfold growth; simpl; ring. Qed.

Lemma leaves_ge1 {A} (order : tree A) : (1 <= leaves order)%nat.
Proof. unfold leaves; induction order as [a|l hl r hr]; simpl; lia. Qed.

Lemma total_le {A} (f g : A -> R) order : (forall a, f a <= g a) -> total f order <= total g order.
Proof. intro h; induction order as [a|l hl r hr]; simpl; [trivial | lra]. Qed.

Lemma total_linear {A} (f : A -> R) c d order :
  total (fun a => c * f a + d) order = c * total f order + INR (leaves order) * d.
Proof.
unfold leaves; induction order as [a|l hl r hr]; simpl; [ring|].
rewrite hl, hr, plus_INR; ring.
Qed.

Lemma total_ge0 {A} (f : A -> R) order : (forall a, 0 <= f a) -> 0 <= total f order.
Proof. intro h; induction order as [a|l hl r hr]; simpl; [trivial | lra]. Qed.

(** ** One operation *)
Section Operation.
Variables (F : precision) (flush : bool).
Hypothesis prec1 : (1 < prec F)%Z.
Notation u := (unit_roundoff F).

Lemma u_positive : 0 < u.
Proof. apply bpow_gt_0. Qed.

Lemma u_ulp : / 2 * bpow radix2 (- prec F + 1) = u.
Proof. unfold unit_roundoff; rewrite bpow_plus; simpl; lra. Qed.

(** A result that is normal has a relative error. *)
Lemma fl_normal x : smallest_normal F <= Rabs x -> Rabs (fl F flush x - x) <= u * Rabs x.
Proof.
intro h; assert (P : Prec_gt_0 (prec F)) by (unfold Prec_gt_0; lia).
assert (V : Valid_exp (exponents F)) by (unfold exponents; typeclasses eauto).
assert (n : smallest_normal F <= Rabs (nearest F x)).
  apply abs_round_ge_generic; trivial; [typeclasses eauto|].
  apply generic_format_bpow; unfold exponents, FLT_exp; lia.
unfold fl; rewrite Rlt_bool_false, andb_false_r by trivial.
assert (E := relative_error_N_FLT radix2 (emin F) (prec F) ltac:(lia)
  (fun z => negb (Z.even z)) x h).
rewrite u_ulp in E; exact E.
Qed.

(** Any result has a relative error, and what underflow takes. *)
Lemma fl_error x : Rabs (fl F flush x - x) <= u * Rabs x + underflow F flush / 2.
Proof.
assert (u0 := u_positive); assert (x0 := Rabs_pos x).
assert (ux : 0 <= u * Rabs x) by (apply Rmult_le_pos; lra).
destruct (Rle_or_lt (smallest_normal F) (Rabs x)) as [h|h].
  assert (E := fl_normal x h); assert (0 <= underflow F flush); [|lra].
  unfold underflow; destruct flush;
    [assert (0 < smallest_normal F) by apply bpow_gt_0 | left; apply bpow_gt_0]; lra.
assert (E : Rabs (nearest F x - x) <= u * Rabs x + smallest F / 2).
  destruct (error_N_FLT radix2 (emin F) (prec F) ltac:(lia) (fun z => negb (Z.even z)) x)
    as [eps [eta [he [ha [_ E]]]]].
  rewrite u_ulp in he; change (nearest F x) with
    (round radix2 (FLT_exp (emin F) (prec F)) (Znearest (fun z => negb (Z.even z))) x).
  rewrite E; replace (x * (1 + eps) + eta - x) with (x * eps + eta) by ring.
  apply Rle_trans with (1 := Rabs_triang _ _), Rplus_le_compat.
    rewrite Rabs_mult, Rmult_comm; apply Rmult_le_compat_r; trivial.
  apply Rle_trans with (1 := ha); unfold smallest; lra.
assert (s : smallest F <= smallest_normal F) by (apply bpow_le; lia).
unfold fl, underflow; destruct flush; simpl; trivial.
destruct (Rlt_bool_spec (Rabs (nearest F x)) (smallest_normal F)).
  rewrite Rminus_0_l, Rabs_Ropp; lra.
assert (0 < smallest F) by apply bpow_gt_0; lra.
Qed.

Lemma underflow_ge0 : 0 <= underflow F flush.
Proof.
unfold underflow; destruct flush; [assert (0 < smallest_normal F) by apply bpow_gt_0; lra|].
left; apply bpow_gt_0.
Qed.
End Operation.

Lemma cast_error H flush x : castable H ->
  Rabs (cast H flush x - x) <= cast_roundoff H * Rabs x + cast_underflow H flush / 2.
Proof.
destruct H as [H|]; simpl; intro h; [apply fl_error; trivial|].
rewrite Rminus_diag_eq, Rabs_R0 by trivial; lra.
Qed.

(** Sums of numbers that are not negative are not flushed. *)
Lemma sum_unflushed F {A} (z : A -> R) order : (1 < prec F)%Z ->
  (forall a, stored F true (z a) /\ 0 <= z a) ->
  sum F true z order = sum F false z order /\
  stored F true (sum F true z order) /\ 0 <= sum F true z order.
Proof.
intros hp hz; induction order as [a|l [El [sl l0]] r [Er [sr r0]]]; simpl.
  destruct (hz a); auto.
rewrite <- El, <- Er; set (x := _ + _); assert (x0 : 0 <= x) by (unfold x; lra).
assert (P : Prec_gt_0 (prec F)) by (unfold Prec_gt_0; lia).
assert (V : Valid_exp (exponents F)) by (unfold exponents; typeclasses eauto).
destruct (Req_dec x 0) as [E|E].
  rewrite E, (fl_stored F true 0), (fl_stored F false 0) by (apply stored0 || trivial).
  split; [|split]; trivial; [apply stored0 | lra].
assert (n : smallest_normal F <= x).
  assert (s0 : 0 < smallest_normal F) by apply bpow_gt_0; unfold x in *.
  destruct (proj2 sl eq_refl) as [h|h], (proj2 sr eq_refl) as [h'|h'];
    try rewrite Rabs_pos_eq in h by trivial; try rewrite Rabs_pos_eq in h' by trivial; lra.
assert (nf : format F (smallest_normal F)).
  apply format_power; trivial; lia.
assert (g : smallest_normal F <= nearest F x).
  rewrite <- (nearest_format F (smallest_normal F)) by trivial; apply nearest_le; trivial.
assert (s0 : 0 < smallest_normal F) by apply bpow_gt_0.
assert (e : fl F true x = nearest F x).
  unfold fl; rewrite Rlt_bool_false; trivial; rewrite Rabs_pos_eq; lra.
rewrite e; split; [|split]; trivial; [split|lra].
- apply format_nearest; trivial.
- intros _; right; rewrite Rabs_pos_eq; lra.
Qed.

(** ** Products and their sum *)
Lemma products_error F {A} (a b : A -> R) order : (1 < prec F)%Z ->
  Rabs (sum F false (fun k => fl F false (a k * b k)) order - total (fun k => a k * b k) order)
  <= growth (unit_roundoff F) (leaves order) * total (fun k => Rabs (a k * b k)) order
     + (1 + growth (unit_roundoff F) (leaves order)) / 2 * (INR (leaves order) * smallest F).
Proof.
intro hp; set (u := unit_roundoff F); assert (u0 : 0 < u) by apply bpow_gt_0.
pose (p k := a k * b k); pose (q k := fl F false (p k)).
assert (P : Prec_gt_0 (prec F)) by (unfold Prec_gt_0; lia).
assert (V : Valid_exp (exponents F)) by (unfold exponents; typeclasses eauto).
destruct (sum_error F q order hp ltac:(intro; unfold q, fl; simpl; apply format_nearest; trivial))
  as [_ S]; fold u in S.
assert (e : forall k, Rabs (q k - p k) <= u * Rabs (p k) + smallest F / 2).
  intro k; exact (fl_error F false hp (p k)).
assert (E : Rabs (total q order - total p order)
    <= u * total (fun k => Rabs (p k)) order + INR (leaves order) * (smallest F / 2)).
  rewrite <- (total_linear (fun k => Rabs (p k))); clear S.
  induction order as [k|l hl r hr]; simpl; [apply e|].
  replace (_ + _ - _) with (total q l - total p l + (total q r - total p r)) by ring.
  apply Rle_trans with (1 := Rabs_triang _ _); lra.
assert (Q : total (fun k => Rabs (q k)) order
    <= (1 + u) * total (fun k => Rabs (p k)) order + INR (leaves order) * (smallest F / 2)).
  rewrite <- (total_linear (fun k => Rabs (p k))); apply total_le; intro k; assert (h := e k).
  replace (q k) with (q k - p k + p k) by ring.
  apply Rle_trans with (1 := Rabs_triang _ _); lra.
fold u in S; assert (n1 := leaves_ge1 order).
assert (M0 : 0 <= total (fun k => Rabs (p k)) order) by (apply total_ge0; intro; apply Rabs_pos).
assert (h0 : 0 <= INR (leaves order) * (smallest F / 2)).
  apply Rmult_le_pos; [apply pos_INR|]; assert (0 < smallest F) by apply bpow_gt_0; lra.
change (total (fun k => a k * b k) order) with (total p order).
change (sum F false (fun k => fl F false (a k * b k)) order) with (sum F false q order).
change (total (fun k => Rabs (a k * b k)) order) with (total (fun k => Rabs (p k)) order).
fold (growth u (leaves order - 1)) in S; fold u.
assert (g0 := growth_ge0 u (leaves order - 1) ltac:(lra)).
assert (gS := growth_S u (leaves order - 1)); replace (Datatypes.S (leaves order - 1)) with (leaves order) in gS by lia.
set (g := growth u (leaves order - 1)) in *; set (M := total (fun k => Rabs (p k)) order) in *.
set (h := INR (leaves order) * (smallest F / 2)) in *; rewrite gS.
replace ((1 + (g * (1 + u) + u)) / 2 * (INR (leaves order) * smallest F))
  with ((1 + (g * (1 + u) + u)) * h) by (unfold h; field).
replace (sum F false q order - total p order)
  with (sum F false q order - total q order + (total q order - total p order)) by ring.
apply Rle_trans with (1 := Rabs_triang _ _).
assert (D := Rmult_le_compat_l g _ _ g0 Q).
assert (0 <= g * u * h) by (apply Rmult_le_pos; [apply Rmult_le_pos|]; lra).
assert (0 <= u * h) by (apply Rmult_le_pos; lra).
lra.
Qed.

(** ** One softmax *)
Section Softmax.
Variables (F : precision) (H : option precision) (flush reciprocal : bool).
Hypotheses (prec1 : (1 < prec F)%Z) (castableH : castable H).
Variables (E z : nat -> R) (order : tree nat) (tau nu : R).
Let T := INR (leaves order).
Let u := unit_roundoff F.
Let uH := cast_roundoff H.
Let S := total E order.
Let Z := sum F flush z order.
Let beta := tau + T * (2 * nu) + growth u (leaves order).
Let rho := ((2 * u + uH) * (1 + 2 * u) + beta) / (1 - beta).
Hypotheses (tau0 : 0 <= tau) (nu0 : 0 <= nu) (beta1 : beta < 1).
Hypothesis few : 4 * T * smallest_normal F <= 1.
Hypotheses (E1 : forall k, 0 <= E k <= 1) (S1 : 1 <= S).
Hypothesis z_stored : forall k, stored F flush (z k) /\ 0 <= z k.
Hypothesis z_error : forall k, Rabs (z k - E k) <= tau * E k + 2 * nu.

Lemma u_half : 0 < u <= / 4.
Proof.
split; [apply bpow_gt_0|]; apply Rle_trans with (bpow radix2 (-2)); [apply bpow_le; lia | simpl; lra].
Qed.

Lemma uH_half : 0 <= uH <= / 4.
Proof.
unfold uH; destruct H as [G|]; simpl in *; [|lra]; split; [left; apply bpow_gt_0|].
apply Rle_trans with (bpow radix2 (-2)); [apply bpow_le; lia | simpl; lra].
Qed.

(** The computed sum is near the exact one. *)
Lemma denominator : (1 - beta) * S <= Z <= (1 + growth u (leaves order)) * (1 + tau + T * (2 * nu)) * S.
Proof.
assert (Zs : Z = sum F false z order).
  unfold Z; destruct flush; trivial; apply sum_unflushed; trivial.
assert (g0 := growth_ge0 u (leaves order) ltac:(destruct u_half; lra)).
assert (gl := growth_le u (leaves order - 1) (leaves order) ltac:(destruct u_half; lra) ltac:(lia)).
destruct (sum_error F z order prec1 (fun k => proj1 (proj1 (z_stored k)))) as [_ D].
fold u in D; fold (growth u (leaves order - 1)) in D; rewrite <- Zs in D.
assert (abs : total (fun k => Rabs (z k)) order = total z order).
  clear -z_stored; induction order as [k|l hl r hr]; simpl; [|rewrite hl, hr; trivial].
  apply Rabs_pos_eq, z_stored.
rewrite abs in D; assert (z0 := total_ge0 z order (fun k => proj2 (z_stored k))).
assert (up : total z order <= (1 + tau) * S + T * (2 * nu)).
  unfold S, T; rewrite <- total_linear; apply total_le; intro k; assert (h := z_error k).
  apply Rabs_le_inv in h; lra.
assert (low : (1 - tau) * S + T * (- (2 * nu)) <= total z order).
  unfold S, T; rewrite <- total_linear; apply total_le; intro k; assert (h := z_error k).
  apply Rabs_le_inv in h; lra.
assert (t0 : 0 <= T * (2 * nu)) by (apply Rmult_le_pos; [apply pos_INR | lra]).
set (g := growth u (leaves order)) in *; set (s := T * (2 * nu)) in *.
replace (T * - (2 * nu)) with (- s) in low by (unfold s; ring).
assert (sS : s <= s * S) by nra.
apply Rabs_le_inv in D; unfold beta; fold s; fold g.
assert (D2 : growth u (leaves order - 1) * total z order <= g * total z order).
  apply Rmult_le_compat_r; trivial.
split.
  assert (b0 : 0 <= 1 - tau - s) by (unfold beta in beta1; fold s g in beta1; lra).
  assert (g1 : g <= 1) by (unfold beta in beta1; fold s g in beta1; lra).
  apply Rle_trans with ((1 - g) * ((1 - tau - s) * S)); [nra|].
  apply Rle_trans with ((1 - g) * total z order); [apply Rmult_le_compat_l; lra | lra].
apply Rle_trans with ((1 + g) * total z order); [lra|].
rewrite Rmult_assoc; apply Rmult_le_compat_l; nra.
Qed.

Lemma Z_positive : 0 < Z.
Proof. destruct denominator as [h _]; nra. Qed.

(** Relatively, what division or the product with the reciprocal, and the cast, may change. *)
Lemma quotient k : exists p, Rabs (p - / Z) <= u * / Z /\
  Rabs ((if reciprocal then fl F flush (z k * fl F flush (/ Z)) else fl F flush (z k / Z)) - z k * p)
  <= u * (z k * p) + underflow F flush / 2.
Proof.
assert (Z0 := Z_positive); assert (I0 : 0 < / Z) by (apply Rinv_0_lt_compat; trivial).
assert (zk := proj2 (z_stored k)); destruct u_half as [u0 u4].
assert (sz : forall p, 0 <= p -> Rabs (fl F flush (z k * p) - z k * p)
    <= u * (z k * p) + underflow F flush / 2).
  intros p p0; assert (e := fl_error F flush prec1 (z k * p)).
  rewrite (Rabs_pos_eq (z k * p)) in e by (apply Rmult_le_pos; trivial); exact e.
destruct reciprocal.
  assert (e : Rabs (fl F flush (/ Z) - / Z) <= u * / Z).
    assert (n : smallest_normal F <= / Z).
      apply Rmult_le_reg_r with Z; trivial; rewrite Rinv_l by lra.
      destruct denominator as [_ up]; assert (ST : S <= T).
        assert (h := total_linear (fun _ : nat => 0) 0 1 order).
        assert (h' := total_le E (fun _ => 0 * 0 + 1) order ltac:(intro j; destruct (E1 j); lra)).
        unfold S, T; rewrite h in h'; lra.
      assert (s0 : 0 < smallest_normal F) by apply bpow_gt_0.
      assert (t0 : 0 <= T * (2 * nu)) by (apply Rmult_le_pos; [apply pos_INR | lra]).
      assert (g0 := growth_ge0 u (leaves order) ltac:(lra)).
      assert (Z <= 4 * T); [|apply Rle_trans with (smallest_normal F * (4 * T)); [nra | lra]].
      apply Rle_trans with (1 := up); unfold beta in beta1.
      set (g := growth _ _) in *; set (s := T * (2 * nu)) in *.
      apply Rmult_le_compat; try nra.
    assert (e := fl_normal F flush prec1 (/ Z)).
    rewrite !(Rabs_pos_eq (/ Z)) in e by lra; apply e; trivial.
  exists (fl F flush (/ Z)); split; trivial; apply sz.
  apply Rabs_le_inv in e; nra.
exists (/ Z); split; [rewrite Rminus_diag_eq, Rabs_R0 by trivial; nra|].
apply sz; lra.
Qed.

Lemma softmax_error k :
  let weight := cast H flush
    (if reciprocal then fl F flush (z k * fl F flush (/ Z)) else fl F flush (z k / Z)) in
  Rabs (weight - E k / S) <= ((1 + tau) * (1 + rho) - 1) * (E k / S)
    + (2 * nu * (1 + rho) + underflow F flush + cast_underflow H flush).
Proof.
intro weight; destruct (quotient k) as [p [hp hq]].
set (y := if reciprocal then _ else _) in *; assert (hw := cast_error H flush y castableH).
fold weight in hw; fold uH in hw.
destruct u_half as [u0 u4]; destruct uH_half as [v0 v4].
assert (S0 : 0 < S) by lra; assert (IS : 0 < / S <= 1).
  split; [apply Rinv_0_lt_compat; trivial | rewrite <- Rinv_1; apply Rinv_le_contravar; lra].
assert (Z0 := Z_positive); assert (I0 : 0 < / Z) by (apply Rinv_0_lt_compat; trivial).
destruct denominator as [low up].
assert (g0 := growth_ge0 u (leaves order) ltac:(lra)).
assert (t0 : 0 <= T * (2 * nu)) by (apply Rmult_le_pos; [apply pos_INR | lra]).
set (g := growth u (leaves order)) in *; set (s := tau + T * (2 * nu)) in *.
assert (s0 : 0 <= s) by (unfold s; lra).
assert (bE : beta = s + g) by (unfold beta, s, g; ring).
assert (b0 : 0 <= beta) by lra.
assert (zk := proj2 (z_stored k)).
(* the two sides of 1/Z *)
assert (hi : / Z <= / S * / (1 - beta)).
  rewrite <- Rinv_mult, Rmult_comm; apply Rinv_le_contravar; [apply Rmult_lt_0_compat | rewrite Rmult_comm in low]; lra.
assert (lo : / S * (1 - beta - g * s) <= / Z).
  apply Rmult_le_reg_r with Z; trivial; rewrite Rinv_l by lra.
  destruct (Rle_or_lt (1 - beta - g * s) 0) as [h|h].
    assert (H0 : 0 <= / S * Z) by (apply Rmult_le_pos; lra).
    replace (/ S * (1 - beta - g * s) * Z) with (/ S * Z * (1 - beta - g * s)) by ring.
    assert (h' := Rmult_le_compat_l _ _ _ H0 h); rewrite Rmult_0_r in h'; lra.
  apply Rle_trans with (/ S * (1 - beta - g * s) * ((1 + g) * (1 + s) * S)).
    apply Rmult_le_compat_l; [apply Rmult_le_pos; lra|]; unfold s; apply Rle_trans with (1 := up); lra.
  replace (/ S * (1 - beta - g * s) * ((1 + g) * (1 + s) * S))
    with ((1 - beta - g * s) * ((1 + g) * (1 + s))) by (field; lra).
  assert (gs : 0 <= g * s) by (apply Rmult_le_pos; trivial).
  assert (0 <= (s + g + g * s) * (s + g + g * s)) by (apply Rmult_le_pos; lra).
  rewrite bE; lra.
(* the relative error of the normalisation *)
assert (B1 : 0 < 1 - beta) by lra.
assert (rho0 : 0 <= rho) by (unfold rho; apply Rmult_le_pos;
  [apply Rplus_le_le_0_compat; trivial; apply Rmult_le_pos; lra | left; apply Rinv_0_lt_compat; lra]).
assert (rE : 1 + rho = ((2 * u + uH) * (1 + 2 * u) + 1) * / (1 - beta)).
  unfold rho; field; lra.
assert (y0 : 0 <= y).
  assert (V : forall x, 0 <= x -> 0 <= fl F flush x) by (intros; apply fl_ge0; trivial).
  unfold y; destruct reciprocal; apply V; apply Rmult_le_pos; trivial; [|lra].
  apply V; lra.
rewrite (Rabs_pos_eq y) in hw by trivial; apply Rabs_le_inv in hw, hp, hq.
assert (U0 := underflow_ge0 F flush).
assert (V0 : 0 <= cast_underflow H flush) by (destruct H; simpl; [apply underflow_ge0 | lra]).
set (U := underflow F flush) in *; set (V := cast_underflow H flush) in *.
set (a := z k * / S); assert (a0 : 0 <= a) by (apply Rmult_le_pos; lra).
set (b := z k * / Z); assert (b0' : 0 <= b) by (apply Rmult_le_pos; lra).
assert (zp : (1 - u) * b <= z k * p <= (1 + u) * b).
  replace ((1 - u) * b) with (z k * ((1 - u) * / Z)) by (unfold b; ring).
  replace ((1 + u) * b) with (z k * ((1 + u) * / Z)) by (unfold b; ring).
  split; apply Rmult_le_compat_l; lra.
assert (yb : (1 - 2 * u) * b - U / 2 <= y <= (1 + 2 * u + u * u) * b + U / 2).
  assert (0 <= u * u * b) by (apply Rmult_le_pos; trivial; apply Rmult_le_pos; lra).
  assert ((1 - u) * ((1 - u) * b) <= (1 - u) * (z k * p)) by (apply Rmult_le_compat_l; lra).
  assert ((1 + u) * (z k * p) <= (1 + u) * ((1 + u) * b)) by (apply Rmult_le_compat_l; lra); lra.
set (c := 2 * u + uH) in *.
assert (wb : (1 - c) * b - U / 2 - V / 2 <= weight <= (1 + c * (1 + 2 * u)) * b + U + V / 2).
  assert (c1 : 0 <= 1 - c) by (unfold c; lra).
  split.
    apply Rle_trans with ((1 - uH) * ((1 - 2 * u) * b - U / 2) - V / 2); [|
      assert (h := Rmult_le_compat_l (1 - uH) _ _ ltac:(lra) (proj1 yb)); lra].
    assert (0 <= uH * u * b) by (apply Rmult_le_pos; trivial; apply Rmult_le_pos; lra).
    assert (0 <= uH * U) by (apply Rmult_le_pos; trivial); unfold c; lra.
  apply Rle_trans with ((1 + uH) * ((1 + 2 * u + u * u) * b + U / 2) + V / 2).
    assert (h := Rmult_le_compat_l (1 + uH) _ _ ltac:(lra) (proj2 yb)); lra.
  assert (uH * U <= / 4 * U) by (apply Rmult_le_compat_r; trivial).
  assert (uu : 0 <= u * u) by (apply Rmult_le_pos; lra).
  assert (uuu : u * u * uH <= u * u * / 4) by (apply Rmult_le_compat_l; trivial).
  assert ((1 + uH) * (1 + 2 * u + u * u) <= 1 + c * (1 + 2 * u)) by (unfold c; lra).
  assert ((1 + uH) * (1 + 2 * u + u * u) * b <= (1 + c * (1 + 2 * u)) * b)
    by (apply Rmult_le_compat_r; trivial); lra.
assert (bhi : b <= a * / (1 - beta)).
  unfold a, b; rewrite Rmult_assoc; apply Rmult_le_compat_l; trivial.
assert (blo : a * (1 - beta - g * s) <= b).
  unfold a, b; rewrite Rmult_assoc; apply Rmult_le_compat_l; trivial.
assert (c0 : 0 <= c <= 1) by (unfold c; lra).
assert (near : Rabs (weight - a) <= rho * a + U + V).
  apply Rabs_le; split.
    assert (R1 : c + beta + g * s <= rho).
      unfold rho; apply Rmult_le_reg_r with (1 - beta); trivial; unfold Rdiv.
      rewrite Rmult_assoc, Rinv_l, Rmult_1_r by lra.
      assert (0 <= u * c) by (apply Rmult_le_pos; lra).
      assert (g0s : 0 <= g * s) by (apply Rmult_le_pos; trivial).
      assert (0 <= g * g) by (apply Rmult_le_pos; trivial).
      assert (0 <= s * s) by (apply Rmult_le_pos; trivial).
      assert (g * s <= beta * beta) by (rewrite bE; lra).
      assert (0 <= g * s * beta) by (apply Rmult_le_pos; [apply Rmult_le_pos|]; lra).
      assert (0 <= c * beta) by (apply Rmult_le_pos; lra); lra.
    assert ((1 - c) * (a * (1 - beta - g * s)) <= (1 - c) * b) by (apply Rmult_le_compat_l; lra).
    assert (0 <= c * (beta + g * s)) by (apply Rmult_le_pos; [lra|]; assert (0 <= g * s) by (apply Rmult_le_pos; lra); lra).
    assert (a * (c + beta + g * s) <= a * rho) by (apply Rmult_le_compat_l; trivial).
    assert (0 <= a * (c * (beta + g * s))) by (apply Rmult_le_pos; trivial).
    lra.
  assert ((1 + c * (1 + 2 * u)) * b <= (1 + c * (1 + 2 * u)) * (a * / (1 - beta))).
    apply Rmult_le_compat_l; trivial; apply Rplus_le_le_0_compat; [|apply Rmult_le_pos]; lra.
  assert ((1 + c * (1 + 2 * u)) * (a * / (1 - beta)) = (1 + rho) * a).
    rewrite rE; fold c; ring.
  lra.
assert (ze := z_error k); apply Rabs_le_inv in ze; destruct (E1 k) as [e0 e1].
assert (zS : Rabs (a - E k / S) <= tau * (E k / S) + 2 * nu).
  unfold a, Rdiv; rewrite <- Rmult_minus_distr_r, Rabs_mult, (Rabs_pos_eq (/ S)) by lra.
  apply Rle_trans with ((tau * E k + 2 * nu) * / S).
    apply Rmult_le_compat_r; [lra|]; apply Rabs_le; lra.
  assert (2 * nu * / S <= 2 * nu * 1) by (apply Rmult_le_compat_l; lra).
  lra.
apply Rabs_le_inv in zS, near.
assert (A0 : 0 <= E k / S) by (apply Rmult_le_pos; lra).
set (A := E k / S) in *.
assert (aA : rho * a <= rho * ((1 + tau) * A + 2 * nu)) by (apply Rmult_le_compat_l; lra).
apply Rabs_le; split; lra.
Qed.
End Softmax.

(** ** Exponentials of rounded scores *)
Lemma exp_ge n : 2 ^ n <= exp (INR n).
Proof.
induction n as [|n IH]; [simpl; rewrite exp_0; lra|].
assert (e2 : 2 <= exp 1) by (assert (h := exp_ineq1 1 ltac:(lra)); lra).
rewrite S_INR, exp_plus; simpl; rewrite Rmult_comm; apply Rmult_le_compat; trivial; try lra.
apply pow_le; lra.
Qed.

Lemma exp_near y : 0 <= y <= / 2 -> exp y <= 1 + y * (1 + 2 * y).
Proof.
intros [y0 y1]; destruct (Req_dec y 0) as [->|n]; [rewrite exp_0; lra|].
assert (h := exp_ineq1 (- y) ltac:(lra)); rewrite exp_Ropp in h.
assert (e0 := exp_pos y); apply Rmult_le_reg_r with (/ exp y); [apply Rinv_0_lt_compat; trivial|].
rewrite Rinv_r by lra; apply Rle_trans with ((1 + y * (1 + 2 * y)) * (1 - y)).
  assert (0 <= y * y * (1 - 2 * y)) by (apply Rmult_le_pos; [apply Rmult_le_pos|]; lra); lra.
apply Rmult_le_compat_l; [|lra]; assert (0 <= y * y) by (apply Rmult_le_pos; lra); lra.
Qed.

Section Exponential.
Variables (F : precision) (n : nat) (ex : R -> R) (x y : R).
Let u := unit_roundoff F.
Let nu := smallest_normal F.
Let S := 1 - ln nu.
Hypotheses (range : nu = bpow radix2 (- Z.of_nat n)) (small : 2 * u * (INR n + 1) <= bpow radix2 (-14)).
Hypotheses (u_small : u <= bpow radix2 (-24)) (x0 : x <= 0) (near : Rabs (y - x) <= 2 * u * Rabs x).
Hypotheses (ex0 : 0 <= ex y) (exE : Rabs (ex y - exp y) <= 40 * u * exp y + nu).

Lemma exponential_error : Rabs (ex y - exp x) <= (40 + 2 * S) * u * (1 + / 2 ^ 12) * exp x + 2 * nu.
Proof.
assert (u0 : 0 < u) by apply bpow_gt_0; assert (nu0 : 0 < nu) by apply bpow_gt_0.
assert (u_tiny : u <= / 1000000) by (simpl in u_small; lra).
assert (S1 : S <= INR n + 1).
  enough (- INR n <= ln nu) by (unfold S; lra).
  rewrite <- (ln_exp (- INR n)); destruct (Req_dec (exp (- INR n)) nu) as [->|d]; [lra|].
  left; apply ln_increasing; [apply exp_pos|].
  enough (exp (- INR n) <= nu) by lra.
  rewrite range, bpow_half, exp_Ropp, pow_inv; apply Rinv_le_contravar; [apply pow_lt; lra | apply exp_ge].
assert (S0 : 1 <= S).
  enough (ln nu <= 0) by (unfold S; lra).
  assert (h : nu <= 1) by (rewrite range; change 1 with (bpow radix2 0); apply bpow_le; lia).
  rewrite <- ln_1; destruct h as [h| ->]; [left; apply ln_increasing; trivial | lra].
assert (eS : exp (- S) <= nu / 2).
  unfold S; replace (- (1 - ln nu)) with (ln nu + - (1)) by ring.
  rewrite exp_plus, exp_ln by trivial; apply Rmult_le_compat_l; [lra|].
  rewrite exp_Ropp; apply Rinv_le_contravar; [lra|]; assert (h := exp_ineq1 1 ltac:(lra)); lra.
set (t := 2 * u * S); assert (t14 : 0 <= t <= / 16384).
  split; [apply Rmult_le_pos; lra|]; simpl in small; unfold t.
  apply Rle_trans with (2 * u * (INR n + 1)); [apply Rmult_le_compat_l; lra | lra].
assert (et : exp t <= 1 + t * (1 + 2 * t)) by (apply exp_near; lra).
assert (t2 : t * (1 + 2 * t) <= t * (1 + / 8192)) by (apply Rmult_le_compat_l; lra).
assert (e0 := exp_pos x); assert (ey0 := exp_pos y).
assert (et0 : 1 <= exp t).
  destruct (Req_dec t 0) as [->|d]; [rewrite exp_0; lra|].
  assert (h := exp_ineq1 t d); lra.
apply Rabs_le_inv in near, exE; rewrite Rabs_left1 in near by trivial.
destruct (Rle_or_lt (- S) x) as [h|h].
  assert (d : - t <= y - x <= t).
    assert (2 * u * - x <= t) by (unfold t; apply Rmult_le_compat_l; lra); lra.
  assert (up : exp y <= exp x * exp t).
    rewrite <- exp_plus; destruct (Req_dec y (x + t)) as [->|q]; [lra|].
    left; apply exp_increasing; lra.
  assert (low : exp x <= exp y * exp t).
    rewrite <- exp_plus; destruct (Req_dec x (y + t)) as [<-|q]; [lra|].
    left; apply exp_increasing; lra.
  assert (D : Rabs (exp y - exp x) <= exp x * (exp t - 1)).
    apply Rabs_le; split; [|lra].
    assert (exp x * (2 - exp t) <= exp y); [|lra].
    apply Rmult_le_reg_r with (exp t); [lra|].
    assert (0 <= exp x * ((exp t - 1) * (exp t - 1))) by
      (apply Rmult_le_pos; [lra | apply Rmult_le_pos; lra]); lra.
  apply Rabs_le_inv in D.
  assert (K : 40 * u * exp y <= 40 * u * (1 + / 4096) * exp x).
    assert (exp x * exp t <= exp x * (1 + / 4096)) by (apply Rmult_le_compat_l; lra).
    assert (40 * u * exp y <= 40 * u * (exp x * (1 + / 4096))) by (apply Rmult_le_compat_l; lra); lra.
  assert (L : exp x * (exp t - 1) <= exp x * (t * (1 + / 4096))).
    apply Rmult_le_compat_l; [lra|]; assert (t * (1 + / 8192) <= t * (1 + / 4096)) by
      (apply Rmult_le_compat_l; lra); lra.
  replace ((40 + 2 * S) * u * (1 + / 2 ^ 12) * exp x)
    with (40 * u * (1 + / 4096) * exp x + exp x * (t * (1 + / 4096))) by (unfold t; field).
  apply Rabs_le; lra.
assert (ex_small : exp x <= nu / 2).
  apply Rle_trans with (2 := eS); left; apply exp_increasing; trivial.
assert (ey : exp y <= nu / 2 * exp t).
  apply Rle_trans with (exp (- S + t)).
    assert (2 * u * (- S - x) <= 1 * (- S - x)) by (apply Rmult_le_compat_r; lra).
    destruct (Req_dec y (- S + t)) as [->|q]; [lra|]; left; apply exp_increasing; unfold t in *; lra.
  rewrite exp_plus; apply Rmult_le_compat_r; lra.
assert (Tau : 0 <= (40 + 2 * S) * u * (1 + / 2 ^ 12) * exp x).
  assert (0 <= / 2 ^ 12) by (simpl; lra).
  repeat apply Rmult_le_pos; lra.
assert (nu / 2 * exp t <= nu / 2 * (1 + / 4096)) by (apply Rmult_le_compat_l; lra).
assert (40 * u * exp y <= / 100 * exp y) by (apply Rmult_le_compat_r; lra).
apply Rabs_le; lra.
Qed.
End Exponential.

Lemma exponential_error_of F ex x y : F = binary32 \/ F = binary64 -> x <= 0 ->
  Rabs (y - x) <= 2 * unit_roundoff F * Rabs x -> 0 <= ex y ->
  Rabs (ex y - exp y) <= 40 * unit_roundoff F * exp y + smallest_normal F ->
  Rabs (ex y - exp x)
  <= (40 + 2 * (1 - ln (smallest_normal F))) * unit_roundoff F * (1 + / 2 ^ 12) * exp x
     + 2 * smallest_normal F.
Proof.
intros [->| ->] hx near ex0 exE.
  apply (exponential_error binary32 126 ex x y); trivial; unfold unit_roundoff; simpl; lra.
apply (exponential_error binary64 1022 ex x y); trivial; unfold unit_roundoff.
  rewrite INR_IZR_INZ; simpl; lra.
simpl; lra.
Qed.

(** ** What a head sees *)
Lemma head_error F {A} (a w X : A -> R) order mu z0 top : (1 < prec F)%Z ->
  0 <= mu -> 0 <= z0 -> (forall k, 0 <= a k) -> (forall k, Rabs (w k - a k) <= mu * a k + z0) ->
  (forall k, Rabs (X k) <= top) ->
  let gamma := growth (unit_roundoff F) (leaves order) in
  Rabs (sum F false (fun k => fl F false (w k * X k)) order - total (fun k => a k * X k) order)
  <= ((1 + mu) * (1 + gamma) - 1) * total (fun k => a k * Rabs (X k)) order
     + (1 + gamma) * (INR (leaves order) * z0) * top
     + (1 + gamma) / 2 * (INR (leaves order) * smallest F).
Proof.
intros hp mu0 z00 a0 hw hX gamma; assert (P := products_error F w X order hp); fold gamma in P.
assert (u0 : 0 < unit_roundoff F) by apply bpow_gt_0.
assert (g0 : 0 <= gamma) by (apply growth_ge0; lra).
assert (e : forall k, Rabs (w k * X k - a k * X k) <= mu * (a k * Rabs (X k)) + z0 * top).
  intro k; rewrite <- Rmult_minus_distr_r, Rabs_mult; assert (x0 := Rabs_pos (X k)).
  apply Rle_trans with ((mu * a k + z0) * Rabs (X k)); [apply Rmult_le_compat_r; trivial|].
  assert (z0 * Rabs (X k) <= z0 * top) by (apply Rmult_le_compat_l; trivial); lra.
assert (D : Rabs (total (fun k => w k * X k) order - total (fun k => a k * X k) order)
    <= mu * total (fun k => a k * Rabs (X k)) order + INR (leaves order) * (z0 * top)).
  rewrite <- (total_linear (fun k => a k * Rabs (X k))); clear -e.
  induction order as [k|l hl r hr]; simpl; [apply e|].
  replace (_ + _ - _) with (total (fun k => w k * X k) l - total (fun k => a k * X k) l +
    (total (fun k => w k * X k) r - total (fun k => a k * X k) r)) by ring.
  apply Rle_trans with (1 := Rabs_triang _ _); lra.
assert (Q : total (fun k => Rabs (w k * X k)) order
    <= (1 + mu) * total (fun k => a k * Rabs (X k)) order + INR (leaves order) * (z0 * top)).
  rewrite <- (total_linear (fun k => a k * Rabs (X k))); apply total_le; intro k.
  replace (w k * X k) with (w k * X k - a k * X k + a k * X k) by ring.
  apply Rle_trans with (1 := Rabs_triang _ _); assert (h := e k).
  rewrite (Rabs_mult (a k)), (Rabs_pos_eq (a k)) by trivial; lra.
set (M := total (fun k => a k * Rabs (X k)) order) in *; set (T := INR (leaves order)) in *.
replace (sum _ _ _ _ - _) with (sum F false (fun k => fl F false (w k * X k)) order
  - total (fun k => w k * X k) order
  + (total (fun k => w k * X k) order - total (fun k => a k * X k) order)) by ring.
apply Rle_trans with (1 := Rabs_triang _ _).
assert (G := Rmult_le_compat_l _ _ _ g0 Q); lra.
Qed.

(** ** A head that is nearly one-hot: rounding is to nearest, so that a result is no further from the
    exact value than any number of the format is. *)
Section Nearest.
Variable F : precision.
Hypothesis prec1 : (1 < prec F)%Z.

Lemma fl_nearest x y : format F y -> Rabs (fl F false x - x) <= Rabs (y - x).
Proof.
intro hy; assert (P : Prec_gt_0 (prec F)) by (unfold Prec_gt_0; lia).
assert (V : Valid_exp (exponents F)) by (unfold exponents; typeclasses eauto).
destruct (round_N_pt radix2 (exponents F) (fun z => negb (Z.even z)) x) as [_ h].
exact (h y hy).
Qed.

Lemma fl_twice x y : format F y -> Rabs (fl F false x - y) <= 2 * Rabs (x - y).
Proof.
intro hy; assert (h := fl_nearest x y hy); rewrite (Rabs_minus_sym y) in h.
replace (fl F false x - y) with (fl F false x - x + (x - y)) by ring.
apply Rle_trans with (1 := Rabs_triang _ _); lra.
Qed.

Lemma fl_twice_0 x : Rabs (fl F false x) <= 2 * Rabs x.
Proof.
assert (h := fl_twice x 0 (generic_format_0 _ _)); rewrite !Rminus_0_r in h; exact h.
Qed.

Lemma fl_format x : format F (fl F false x).
Proof. unfold fl; simpl; apply format_nearest; trivial. Qed.

Lemma sum_format {A} (z : A -> R) order : (forall k, format F (z k)) -> format F (sum F false z order).
Proof. intro hz; destruct order; simpl; [apply hz | apply fl_format]. Qed.

(** Adding something to a number moves it by at most twice that. *)
Lemma sum_near (z : nat -> R) t order : (forall k, format F (z k)) ->
  count (Nat.eqb t) order = 1%nat ->
  Rabs (sum F false z order - z t) <= 2 * (1 + growth (unit_roundoff F) (leaves order))
    * total (fun k => if Nat.eqb t k then 0 else Rabs (z k)) order.
Proof.
intro hz; assert (u0 : 0 < unit_roundoff F) by apply bpow_gt_0.
pose (off k := if Nat.eqb t k then 0 else Rabs (z k)); fold off.
assert (off0 : forall k, 0 <= off k) by (intro k; unfold off; destruct (Nat.eqb t k); [lra | apply Rabs_pos]).
assert (none : forall o : tree nat, count (Nat.eqb t) o = 0%nat ->
    Rabs (sum F false z o) <= (1 + growth (unit_roundoff F) (leaves o)) * total off o).
  intros o ho; destruct (sum_error F z o prec1 hz) as [_ h]; fold (growth (unit_roundoff F) (leaves o - 1)) in h.
  assert (E : total (fun k => Rabs (z k)) o = total off o).
    clear h; induction o as [k|l hl r hr]; simpl in *.
      unfold off; destruct (Nat.eqb t k); [discriminate | trivial].
    rewrite hl, hr by lia; trivial.
  assert (S : Rabs (total z o) <= total off o).
    rewrite <- E; clear; induction o as [k|l hl r hr]; simpl; [lra|].
    apply Rle_trans with (1 := Rabs_triang _ _); lra.
  rewrite E in h; assert (g := growth_le (unit_roundoff F) (leaves o - 1) (leaves o) ltac:(lra) ltac:(lia)).
  replace (sum F false z o) with (sum F false z o - total z o + total z o) by ring.
  apply Rle_trans with (1 := Rabs_triang _ _).
  assert (D := Rmult_le_compat_r _ _ _ (total_ge0 off o off0) g); lra.
assert (grow : forall m n (x : R), (m <= n)%nat -> 0 <= x ->
    (1 + growth (unit_roundoff F) m) * x <= (1 + growth (unit_roundoff F) n) * x).
  intros m n x mn x0; apply Rmult_le_compat_r; trivial.
  assert (h := growth_le (unit_roundoff F) m n ltac:(lra) mn); lra.
assert (node : forall l r : tree nat, count (Nat.eqb t) r = 0%nat ->
    Rabs (sum F false z l - z t) <= 2 * (1 + growth (unit_roundoff F) (leaves l)) * total off l ->
    Rabs (fl F false (sum F false z l + sum F false z r) - z t)
    <= 2 * (1 + growth (unit_roundoff F) (leaves l + leaves r)) * (total off l + total off r)).
  intros l r hr hl; assert (R0 := none r hr).
  assert (h := fl_nearest (sum F false z l + sum F false z r) (sum F false z l) (sum_format z l hz)).
  replace (sum F false z l - (sum F false z l + sum F false z r)) with (- sum F false z r) in h by ring.
  rewrite Rabs_Ropp in h.
  assert (gl := grow (leaves l) (leaves l + leaves r)%nat _ ltac:(lia) (total_ge0 off l off0)).
  assert (gr := grow (leaves r) (leaves l + leaves r)%nat _ ltac:(lia) (total_ge0 off r off0)).
  replace (fl F false _ - z t) with (fl F false (sum F false z l + sum F false z r)
    - (sum F false z l + sum F false z r) + (sum F false z l - z t + sum F false z r)) by ring.
  apply Rle_trans with (1 := Rabs_triang _ _).
  assert (h' := Rabs_triang (sum F false z l - z t) (sum F false z r)); lra.
induction order as [k|l IHl r IHr]; simpl; intro once.
  destruct (Nat.eqb t k) eqn:E; [|discriminate].
  apply Nat.eqb_eq in E; subst k; rewrite Rminus_diag_eq, Rabs_R0 by trivial.
  assert (h := off0 t); assert (g := growth_ge0 (unit_roundoff F) (leaves (Leaf t)) ltac:(lra)).
  apply Rmult_le_pos; lra.
unfold leaves; simpl; fold (leaves l) (leaves r).
destruct (count (Nat.eqb t) l) as [|[|]] eqn:E; try lia.
  rewrite Rplus_comm, Nat.add_comm, (Rplus_comm (total off l)); apply node; [trivial|].
  apply IHr; lia.
apply node; [lia | apply IHl; trivial].
Qed.
End Nearest.

Section NearlyOneHot.
Variables (F : precision) (H : option precision) (reciprocal : bool).
Hypotheses (prec1 : (1 < prec F)%Z) (normal1 : (emin F + prec F <= 1)%Z).
Hypotheses (castableH : castable H) (oneH : match H with Some G => format G 1 | None => True end).
Variables (E z X : nat -> R) (t : nat) (order : tree nat) (lambda top : R).
Let G := 1 + growth (unit_roundoff F) (leaves order).
Let Z := sum F false z order.
Let weight k := cast H false
  (if reciprocal then fl F false (z k * fl F false (/ Z)) else fl F false (z k / Z)).
Let off (f : nat -> R) k := if Nat.eqb t k then 0 else f k.
Hypotheses (once : count (Nat.eqb t) order = 1%nat) (zt : z t = 1) (Et : E t = 1).
Hypotheses (z_format : forall k, format F (z k) /\ 0 <= z k) (E0 : forall k, 0 <= E k).
Hypotheses (z_off : total (off z) order <= lambda) (E_off : total (off E) order <= lambda).
Hypotheses (X_format : forall k, format F (X k)) (X_top : forall k, Rabs (X k) <= top).

Let f1 : format F 1. Proof. apply (stored1 F false); trivial. Qed.

Lemma G_ge1 : 1 <= G.
Proof.
assert (h := growth_ge0 (unit_roundoff F) (leaves order) ltac:(left; apply bpow_gt_0)).
unfold G; lra.
Qed.

Lemma near_one_sum : 1 <= Z <= 1 + 2 * G * lambda.
Proof.
assert (g1 := G_ge1); split.
  assert (nn : forall o : tree nat, 0 <= sum F false z o /\
      ((1 <= count (Nat.eqb t) o)%nat -> 1 <= sum F false z o)).
    induction o as [k|l [l0 l1] r [r0 r1]]; simpl.
      split; [apply z_format|]; destruct (Nat.eqb t k) eqn:e; [|lia].
      apply Nat.eqb_eq in e; subst k; rewrite zt; lra.
    split; [apply fl_ge0; trivial; lra|]; intro h; apply fl_ge; trivial; [apply normal_le1; trivial|].
    destruct (count (Nat.eqb t) l); [assert (1 <= sum F false z r) by (apply r1; lia) |
      assert (1 <= sum F false z l) by (apply l1; lia)]; lra.
  apply nn; lia.
assert (h := sum_near F prec1 z t order (fun k => proj1 (z_format k)) once); fold Z G in h.
assert (e : total (fun k => if Nat.eqb t k then 0 else Rabs (z k)) order = total (off z) order).
  clear -z_format; unfold off; induction order as [k|l hl r hr]; simpl; [|rewrite hl, hr; trivial].
  destruct (Nat.eqb t k); trivial; apply Rabs_pos_eq, z_format.
rewrite e, zt in h; apply Rabs_le_inv in h.
assert (2 * G * total (off z) order <= 2 * G * lambda) by (apply Rmult_le_compat_l; lra); lra.
Qed.

Lemma cast_twice x y : (match H with Some K => format K y | None => True end) ->
  Rabs (cast H false x - y) <= 2 * Rabs (x - y).
Proof.
destruct H as [K|]; simpl in *; intro h; [apply fl_twice; trivial|].
assert (h' := Rabs_pos (x - y)); lra.
Qed.

(** Ten: the peak. *)
Lemma near_one_peak : Rabs (weight t - 1) <= 8 * G * lambda.
Proof.
destruct near_one_sum as [Z1 Z2]; assert (I : 1 - (Z - 1) <= / Z <= 1).
  split; [|rewrite <- Rinv_1; apply Rinv_le_contravar; lra].
  apply Rmult_le_reg_r with Z; [lra|]; rewrite Rinv_l by lra.
  assert (0 <= (Z - 1) * (Z - 1)) by (apply Rmult_le_pos; lra); lra.
assert (e : Rabs (/ Z - 1) <= 2 * G * lambda) by (apply Rabs_le; lra).
unfold weight; rewrite zt; assert (one : match H with Some K => format K 1 | None => True end) by trivial.
apply Rle_trans with (1 := cast_twice _ 1 one).
assert (h := fl_twice F prec1 (/ Z) 1 f1); destruct reciprocal.
  rewrite Rmult_1_l, (fl_stored F false (fl F false (/ Z))); [lra | split; [apply fl_format; trivial | discriminate]].
unfold Rdiv; rewrite Rmult_1_l; lra.
Qed.

Lemma near_one_others k : 0 <= weight k <= 2 * z k.
Proof.
destruct near_one_sum as [Z1 Z2]; destruct (z_format k) as [zf z0].
assert (I : 0 < / Z <= 1).
  split; [apply Rinv_0_lt_compat; lra | rewrite <- Rinv_1; apply Rinv_le_contravar; lra].
assert (r : 0 <= fl F false (/ Z) <= 1) by (split; [apply fl_ge0 | apply fl_le]; trivial; lra).
assert (small : forall x, 0 <= x <= 1 -> 0 <= fl F false (z k * x) <= z k).
  intros x hx; split; [apply fl_ge0; trivial; apply Rmult_le_pos; lra|].
  apply fl_le; trivial; rewrite <- (Rmult_1_r (z k)) at 2; apply Rmult_le_compat_l; lra.
set (y := if reciprocal then fl F false (z k * fl F false (/ Z)) else fl F false (z k / Z)).
assert (hy : 0 <= y <= z k) by (unfold y; destruct reciprocal; apply small; lra).
unfold weight; fold y; split.
  destruct H as [K|]; simpl in *; [apply fl_ge0; trivial; lra | lra].
destruct H as [K|]; simpl in *; [|lra].
assert (h := fl_twice_0 K castableH y); rewrite (Rabs_pos_eq y) in h by lra.
assert (a := Rle_abs (fl K false y)); lra.
Qed.

Lemma near_one_head :
  Rabs (sum F false (fun k => fl F false (weight k * X k)) order
        - total (fun k => E k / total E order * X k) order) <= 26 * G * lambda * top.
Proof.
assert (g1 := G_ge1); assert (top0 : 0 <= top) by (apply Rle_trans with (2 := X_top 0%nat), Rabs_pos).
assert (L0 : 0 <= total (off E) order).
  apply total_ge0; intro k; unfold off; destruct (Nat.eqb t k); [lra | trivial].
pose (p k := fl F false (weight k * X k)).
assert (h := sum_near F prec1 p t order (fun k => fl_format F prec1 _) once); fold G in h.
assert (others : total (fun k => if Nat.eqb t k then 0 else Rabs (p k)) order <= 4 * top * lambda).
  apply Rle_trans with (4 * top * total (off z) order + INR (leaves order) * 0).
    rewrite <- total_linear; apply total_le; intro k; unfold off; destruct (Nat.eqb t k); [lra|].
    destruct (near_one_others k) as [w0 w1]; assert (P := fl_twice_0 F prec1 (weight k * X k)); fold (p k) in P.
    rewrite Rabs_mult, (Rabs_pos_eq (weight k)) in P by trivial.
    assert (weight k * Rabs (X k) <= 2 * z k * top).
      apply Rmult_le_compat; trivial; apply Rabs_pos.
    lra.
  assert (4 * top * total (off z) order <= 4 * top * lambda) by (apply Rmult_le_compat_l; lra); lra.
assert (peak : Rabs (p t - X t) <= 16 * G * lambda * top).
  apply Rle_trans with (1 := fl_twice F prec1 (weight t * X t) (X t) (X_format t)).
  replace (weight t * X t - X t) with ((weight t - 1) * X t) by ring; rewrite Rabs_mult.
  assert (Rabs (weight t - 1) * Rabs (X t) <= 8 * G * lambda * top).
    apply Rmult_le_compat; trivial; try apply Rabs_pos; apply near_one_peak.
  lra.
assert (S : total E order = 1 + total (off E) order).
  clear -once Et; assert (none : forall o : tree nat, count (Nat.eqb t) o = 0%nat -> total E o = total (off E) o).
    induction o as [k|l hl r hr]; simpl; intro e; [|rewrite hl, hr by lia; trivial].
    unfold off; destruct (Nat.eqb t k); [discriminate | trivial].
  induction order as [k|l hl r hr]; simpl in *.
    unfold off; destruct (Nat.eqb t k) eqn:e; [|discriminate].
    apply Nat.eqb_eq in e; subst k; rewrite Et; ring.
  destruct (count (Nat.eqb t) l) as [|[|]] eqn:e; try lia.
    rewrite none, hr by lia; ring.
  rewrite hl, (none r) by lia; ring.
set (L := total (off E) order) in *.
assert (real : Rabs (total (fun k => E k / total E order * X k) order - X t) <= 2 * L * top).
  assert (e : total (fun k => E k / total E order * X k) order - X t
      = / total E order * total (fun k => E k * (X k - X t)) order).
    assert (e1 : forall o : tree nat, total (fun k => E k / total E order * X k) o
      = / total E order * (total (fun k => E k * (X k - X t)) o + total E o * X t)).
      induction o as [k|l hl r hr]; simpl; [unfold Rdiv; ring | rewrite hl, hr; ring].
    rewrite e1; field; lra.
  assert (d : Rabs (total (fun k => E k * (X k - X t)) order) <= 2 * top * L + INR (leaves order) * 0).
    unfold L; rewrite <- total_linear.
    assert (term : forall k, Rabs (E k * (X k - X t)) <= 2 * top * off E k + 0).
      intro k; unfold off; destruct (Nat.eqb t k) eqn:e2.
        apply Nat.eqb_eq in e2; subst k; rewrite Rminus_diag_eq, Rmult_0_r, Rabs_R0 by trivial; lra.
      rewrite Rabs_mult, (Rabs_pos_eq (E k)) by trivial.
      assert (Rabs (X k - X t) <= 2 * top).
        assert (T := Rabs_triang (X k) (- X t)); rewrite Rabs_Ropp in T; unfold Rminus.
        assert (a := X_top k); assert (b := X_top t); lra.
      assert (E k * Rabs (X k - X t) <= E k * (2 * top)) by (apply Rmult_le_compat_l; trivial); lra.
    clear -term; induction order as [k|l hl r hr]; simpl; [apply term|].
    apply Rle_trans with (1 := Rabs_triang _ _); lra.
  rewrite e, Rabs_mult, S, (Rabs_pos_eq (/ _)) by (left; apply Rinv_0_lt_compat; lra).
  assert (i1 : / (1 + L) <= 1) by (rewrite <- Rinv_1; apply Rinv_le_contravar; lra).
  assert (i0 : 0 < / (1 + L)) by (apply Rinv_0_lt_compat; lra).
  apply Rle_trans with (1 * (2 * top * L)); [|lra].
  apply Rmult_le_compat; try lra; apply Rabs_pos.
change (sum F false (fun k => fl F false (weight k * X k)) order) with (sum F false p order).
assert (P : 2 * G * total (fun k => if Nat.eqb t k then 0 else Rabs (p k)) order <= 2 * G * (4 * top * lambda)).
  apply Rmult_le_compat_l; lra.
assert (Q : 2 * L * top <= 2 * (G * lambda) * top).
  apply Rmult_le_compat_r; trivial; assert (1 * lambda <= G * lambda) by (apply Rmult_le_compat_r; lra); lra.
replace (sum F false p order - _) with (sum F false p order - p t + (p t - X t)
  - (total (fun k => E k / total E order * X k) order - X t)) by ring.
assert (T1 := Rabs_triang (sum F false p order - p t + (p t - X t))
  (- (total (fun k => E k / total E order * X k) order - X t))); rewrite Rabs_Ropp in T1.
assert (T2 := Rabs_triang (sum F false p order - p t) (p t - X t)).
unfold Rminus at 1; lra.
Qed.
End NearlyOneHot.
