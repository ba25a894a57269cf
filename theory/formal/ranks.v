(** * Heads and the rank of the taps (T10, T11, T13) *)
From mathcomp Require Import all_ssreflect all_algebra.
From Formal Require Import names setting shifts theorem1.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(** ** A layer that is the convolution factors the taps *)
Section Lower.
Variables (F : fieldType) (G : zmodType) (Din Dh Dout Nh N : nat) (K : finType) (pos : K -> G).
Variables (offset : 'I_N -> G) (W : 'I_N -> 'M[F]_(Din, Dout)) (a : 'I_Nh -> K -> F).
Variables (Wval : 'I_Nh -> 'M[F]_(Din, Dh)) (Wout : 'M[F]_(Nh * Dh, Dout)) (b b' : 'rV[F]_Dout).
Variables (q : G) (free : pred G).
Hypothesis offsetI : injective offset.
Hypothesis same : forall X : image F G Din, (forall p, ~~ free p -> X p = 0) ->
  multihead pos a Wval Wout b X = convolution offset W b' X q.

Let V h := Wval h *m block Wout h.
Let at_position p h : F := \sum_(k | pos k == p) a h k.
Let dot (p : G) (x : 'rV[F]_Din) : image F G Din := fun p' => (p' == p)%:R *: x.

Lemma attend_dot p (x : 'rV[F]_Din) h : attend pos (a h) (dot p x) = at_position p h *: x.
Proof.
rewrite /attend /at_position scaler_suml [RHS]big_mkcond; apply: eq_bigr => k _.
by rewrite /dot; case: eqP => _; rewrite ?scale1r ?scale0r ?scaler0.
Qed.

Lemma one_pixel (p : G) (x : 'rV[F]_Din) : free p ->
  b + x *m (\sum_h at_position p h *: V h) = b' + \sum_t (q + offset t == p)%:R *: (x *m W t).
Proof.
move=> p_free; have : multihead pos a Wval Wout b (dot p x) = convolution offset W b' (dot p x) q.
  by apply: same => p' off; rewrite /dot; case: eqP off => [->|_ _]; rewrite ?p_free ?scale0r.
rewrite multiheadE /convolution mulmx_sumr => E.
transitivity (b + \sum_h attend pos (a h) (dot p x) *m V h).
  by congr +%R; apply: eq_bigr => h _; rewrite attend_dot -scalemxAr scalemxAl.
by rewrite E; congr +%R; apply: eq_bigr => t _; rewrite -scalemxAl.
Qed.

Lemma same_bias p : free p -> b = b'.
Proof.
move=> /(one_pixel 0); rewrite mul0mx addr0 big1 ?addr0 // => t _.
by rewrite mul0mx scaler0.
Qed.

Lemma tap_factors t : free (q + offset t) ->
  \sum_h at_position (q + offset t) h *: V h = W t.
Proof.
move=> seen; apply/row_matrixP => i; rewrite 2!rowE.
have := one_pixel (delta_mx 0 i) seen; rewrite (same_bias seen) => /addrI ->.
rewrite (bigD1 t) //= eqxx scale1r big1 ?addr0 // => t' tt'.
by rewrite (inj_eq (addrI q)) (inj_eq offsetI) (negbTE tt') scale0r.
Qed.

Lemma nothing_outside p : free p -> (forall t, q + offset t != p) ->
  \sum_h at_position p h *: V h = 0.
Proof.
move=> seen out; apply/row_matrixP => i; rewrite rowE row0.
have := one_pixel (delta_mx 0 i) seen; rewrite (same_bias seen) => /addrI ->.
by rewrite big1 // => t _; rewrite (negbTE (out t)) scale0r.
Qed.

Lemma taps_factor : (forall t, free (q + offset t)) ->
  taps W = (\matrix_(t, h) at_position (q + offset t) h) *m taps V.
Proof.
move=> seen; apply/row_matrixP => t; rewrite row_mul !rowK -(tap_factors (seen t)) linear_sum.
rewrite mulmx_sum_row; apply: eq_bigr => h _.
by rewrite linearZ !mxE rowK.
Qed.

Lemma rank_le_heads : (forall t, free (q + offset t)) -> (\rank (taps W) <= Nh)%N.
Proof.
by move=> /taps_factor ->; apply: leq_trans (mxrankM_maxr _ _) (rank_leq_row _).
Qed.

Lemma rank_lt_heads p h : (forall t, free (q + offset t)) -> free p ->
  (forall t, q + offset t != p) -> at_position p h != 0 -> (\rank (taps W) < Nh)%N.
Proof.
move=> seen p_free out weight; rewrite (taps_factor seen).
apply: leq_ltn_trans (mxrankM_maxr _ _) _.
rewrite ltn_neqAle rank_leq_row andbT; apply: contra weight => rows_free.
have : (\row_h at_position p h) *m taps V == 0.
  rewrite mulmx_sum_row; apply/eqP; transitivity (mxvec (\sum_h at_position p h *: V h)).
    by rewrite linear_sum; apply: eq_bigr => g _; rewrite linearZ rowK mxE.
  by rewrite (nothing_outside p_free out) linear0.
by rewrite mulmx_free_eq0 // => /eqP/rowP/(_ h); rewrite !mxE => ->.
Qed.
End Lower.

(** Nonnegative heads that are as few as the rank see nothing of a tap at which a certificate is
    positive. *)
Lemma rank_lt_certified (R : realFieldType) (G : zmodType) Din Dh Dout Nh N (K : finType) (pos : K -> G)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout)) (a : 'I_Nh -> K -> R)
    (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) b b' q (free : pred G)
    (y : 'rV[R]_N) t :
  injective offset ->
  (forall X : image R G Din, (forall p, ~~ free p -> X p = 0) ->
   multihead pos a Wval Wout b X = convolution offset W b' X q) ->
  (forall t, free (q + offset t)) -> (forall h k, 0 <= a h k) -> (forall t, 0 <= y 0 t) ->
  y *m taps W = 0 -> 0 < y 0 t -> W t != 0 -> (\rank (taps W) < Nh)%N.
Proof.
move=> offsetI same seen a0 y0 yW yt; apply: contraNltn => few.
have := taps_factor offsetI same seen; set A := \matrix_(_, _) _.
set B := taps (fun h => Wval h *m block Wout h) => factor.
have B_free : row_free B.
  rewrite /row_free eqn_leq rank_leq_row /=; apply: leq_trans few _.
  by rewrite factor mxrankM_maxr.
have yA : y *m A = 0.
  by apply/eqP; rewrite -(mulmx_free_eq0 _ B_free) -mulmxA -factor yW.
rewrite -(tap_factors offsetI same (seen t)) big1 // => h _.
have A0 i : 0 <= A i h by rewrite mxE sumr_ge0.
have /(psumr_eq0P (fun i _ => mulr_ge0 (y0 i) (A0 i)))/(_ t isT)/eqP : \sum_i y 0 i * A i h = 0.
  by move/rowP/(_ h): yA; rewrite !mxE.
by rewrite mulf_eq0 (gt_eqF yt) mxE => /eqP ->; rewrite scale0r.
Qed.

(** ** Positive factors, one more than the rank *)
Lemma positive_factors (R : realFieldType) n r m (C : 'M[R]_(n, r)) (B : 'M[R]_(r, m)) :
  exists2 A : 'M[R]_(n, r.+1), (forall i j, 0 < A i j) & exists V : 'M[R]_(r.+1, m), A *m V = C *m B.
Proof.
pose eps := (1 + \sum_i \sum_j `|C i j|)^-1.
have sum0 : 0 <= \sum_i \sum_j `|C i j| by apply: sumr_ge0 => i _; apply: sumr_ge0.
have eps0 : 0 < eps by rewrite invr_gt0 ltr_wpDr ?ltr01.
have small i j : 0 < 1 + eps * C i j.
  have : eps * `|C i j| < 1.
    rewrite mulrC ltr_pdivrMr ?ltr_wpDr ?ltr01 // mul1r.
    apply: le_lt_trans (_ : _ <= \sum_i \sum_j `|C i j|) _; last by rewrite ltrDr ltr01.
    rewrite (bigD1 i) //= (bigD1 j) //= -addrA lerDl addr_ge0 ?sumr_ge0 // => k _.
    exact: sumr_ge0.
  rewrite -[X in X * `|_|]gtr0_norm // -normrM ltr_norml => /andP[lo _].
  by rewrite -ltrBlDl sub0r.
have ones : const_mx 1 = (const_mx 1 : 'cV[R]_n) *m (const_mx 1 : 'rV[R]_r).
  by apply/matrixP => i j; rewrite !mxE big_ord1 !mxE mulr1.
exists (row_mx (const_mx 1) (const_mx 1 + eps *: C) : 'M_(n, 1 + r)).
  by move=> i j; rewrite mxE; case: splitP => k _; rewrite !mxE ?ltr01.
exists (col_mx (- (eps^-1 *: ((const_mx 1 : 'rV[R]_r) *m B))) (eps^-1 *: B) : 'M_(1 + r, m)).
rewrite (@mul_row_col _ n 1 r m) mulmxDl mulmxN -!scalemxAr mulmxA -ones -scalemxAl scalerA mulVf ?gt_eqF //.
by rewrite scale1r addrA addNr add0r.
Qed.

(** So the taps have positive factors, and beside them a positive row whose product is 0: the weights of
    a key outside of the window. *)
Lemma positive_heads (R : realFieldType) Din Dout N (W : 'I_N -> 'M[R]_(Din, Dout)) :
  let H := (\rank (taps W)).+1 in
  exists (A : 'I_N -> 'I_H -> R) (o : 'I_H -> R) (V : 'I_H -> 'M[R]_(Din, Dout)),
  [/\ forall t h, 0 < A t h, forall h, 0 < o h, forall t, \sum_h A t h *: V h = W t
    & \sum_h o h *: V h = 0].
Proof.
set r := \rank _; pose C : 'M[R]_(N + 1, r) := col_mx (col_base (taps W)) 0.
have [A A0 [V AV]] := positive_factors C (row_base (taps W)).
have combine i : \sum_h A i h *: vec_mx (row h V)
    = vec_mx (row i (C *m row_base (taps W))) :> 'M_(Din, Dout).
  rewrite -AV row_mul mulmx_sum_row linear_sum; apply: eq_bigr => h _.
  by rewrite linearZ !mxE.
exists (fun t => A (lshift 1 t)), (A (rshift N 0)), (fun h => vec_mx (row h V)); split=> // [t|].
  by rewrite combine mul_col_mx mulmx_base rowKu rowK mxvecK.
by rewrite combine mul_col_mx mul0mx rowKd row0 linear0.
Qed.

(** Taps on one side of a hyperplane have as many positive factors as their rank. *)
Lemma positive_basis (R : realFieldType) Din Dout N (W : 'I_N -> 'M[R]_(Din, Dout))
    (c : 'cV[R]_(Din * Dout)) :
  (forall t, 0 < (taps W *m c) t 0) -> let H := \rank (taps W) in
  exists (A : 'I_N -> 'I_H -> R) (V : 'I_H -> 'M[R]_(Din, Dout)),
  (forall t h, 0 < A t h) /\ forall t, \sum_h A t h *: V h = W t.
Proof.
set r := \rank _ => side; pose C := col_base (taps W); pose m := taps W *m c.
pose w : 'cV[R]_r := row_base (taps W) *m c; pose s := \sum_i w i 0.
have mE : C *m w = m by rewrite mulmxA mulmx_base.
have [eps eps0 [small shifted]] : exists2 eps, 0 < eps &
    (forall i j, 0 < m i 0 + eps * C i j) /\ eps + s != 0.
  pose top := \sum_i \sum_j `|C i j| / m i 0.
  have m0 i : 0 < m i 0 := side i.
  have term0 i j : 0 <= `|C i j| / m i 0 by rewrite divr_ge0 // ltW.
  have top0 : 0 <= top by apply: sumr_ge0 => i _; apply: sumr_ge0.
  have small eps : 0 < eps -> eps <= (1 + top)^-1 -> forall i j, 0 < m i 0 + eps * C i j.
    move=> eps0 le i j; have p : 0 < 1 + top by rewrite ltr_wpDr ?ltr01.
    have : eps * (`|C i j| / m i 0) < 1.
      apply: le_lt_trans (ler_wpM2r (term0 i j) le) _; rewrite mulrC ltr_pdivrMr // mul1r.
      apply: le_lt_trans (_ : _ <= top) _; last by rewrite ltrDr ltr01.
      rewrite /top (bigD1 i) //= (bigD1 j) //= -addrA lerDl addr_ge0 ?sumr_ge0 // => k _.
      exact: sumr_ge0.
    rewrite mulrA ltr_pdivrMr // mul1r -[X in X * `|_|](gtr0_norm eps0) -normrM ltr_norml => /andP[lo _].
    by rewrite -ltrBlDl sub0r.
  have p : 0 < (1 + top)^-1 by rewrite invr_gt0 ltr_wpDr ?ltr01.
  have [E|ne] := eqVneq ((1 + top)^-1 + s) 0; last by exists (1 + top)^-1 => //; split=> //; apply: small.
  have half : 0 < (1 + top)^-1 / 2%:R by rewrite divr_gt0 ?ltr0n.
  have lt : (1 + top)^-1 / 2%:R < (1 + top)^-1 by rewrite [X in _ < X]splitr ltrDr.
  exists ((1 + top)^-1 / 2%:R) => //; split; first exact: small half (ltW lt).
  by rewrite -E (inj_eq (addIr s)) lt_eqF.
pose ones : 'rV[R]_r := const_mx 1.
have onesw : ones *m w = s%:M.
  by apply/matrixP => i j; rewrite !ord1 !mxE eqxx; apply: eq_bigr => k _; rewrite mxE mul1r.
pose P := w *m ones; have PP : P *m P = s *: P.
  by rewrite mulmxA -(mulmxA w) onesw mul_mx_scalar -scalemxAl.
have inverse : (P + eps%:M) *m (1%:M - (eps + s)^-1 *: P) = eps%:M.
  rewrite mulmxBr mulmx1 -scalemxAr mulmxDl PP mul_scalar_mx -scalerDl scalerA (addrC s) mulVf //.
  by rewrite scale1r addrAC subrr add0r.
have [V AV] : exists V, (m *m ones + eps *: C) *m V = taps W.
  exists (eps^-1 *: ((1%:M - (eps + s)^-1 *: P) *m row_base (taps W))).
  have -> : m *m ones + eps *: C = C *m (P + eps%:M) by rewrite mulmxDr mul_mx_scalar mulmxA mE.
  rewrite -scalemxAr mulmxA -(mulmxA C) inverse mul_mx_scalar -scalemxAl mulmx_base.
  by rewrite scalerA mulVf ?scale1r // gt_eqF.
exists (fun t h => (m *m ones + eps *: C) t h), (fun h => vec_mx (row h V)); split=> [t h|t].
  by rewrite mxE [X in _ + X]mxE [X in X + _]mxE big_ord1 [ones _ _]mxE mulr1.
have /= := congr1 (fun M => vec_mx (row t M) : 'M_(Din, Dout)) AV; rewrite rowK mxvecK => <-.
rewrite row_mul mulmx_sum_row linear_sum.
by apply: eq_bigr => h _; rewrite linearZ; congr (_ *: _); rewrite [RHS]mxE.
Qed.

(** ** Heads of given weights at the taps, and of another one elsewhere *)
Section Positional.
Variables (R : realFieldType) (G : zmodType) (Din Dh Dout Nh N : nat) (offset : 'I_N -> G).
Variables (A : 'I_N -> 'I_Nh -> R) (o : 'I_Nh -> R) (keys : nat).
Hypotheses (offsetI : injective offset) (A0 : forall t h, 0 <= A t h) (o0 : forall h, 0 <= o h).

Definition positional h (p : G) : R := if [pick t | offset t == p] is Some t then A t h else o h.

Lemma positional_ge0 h p : 0 <= positional h p.
Proof. by rewrite /positional; case: pickP. Qed.

Lemma positional_tap h t : positional h (offset t) = A t h.
Proof. by rewrite /positional; case: pickP => [t' /eqP/offsetI -> //|/(_ t)]; rewrite eqxx. Qed.

Variables (K : finType) (pos : K -> G) (q : G).
Hypotheses (posI : injective pos) (seen : sees_window pos offset q).

Lemma sum_window (M : zmodType) (F : G -> M) :
  (forall p, (forall t, offset t != p - q) -> F p = 0) ->
  \sum_k F (pos k) = \sum_t F (q + offset t).
Proof.
move=> off; have [key keyE] := fin_all_exists seen.
have keyI : injective key.
  by move=> t t' E; apply/offsetI/(addrI q); rewrite -!keyE E.
rewrite (bigID (mem (codom key))) /= [X in _ + X]big1 ?addr0 => [|k]; last first.
  move=> /codomP none; apply: off => t; apply/eqP => E; apply: none; exists t.
  by apply: posI; rewrite keyE E addrC subrK.
rewrite -big_uniq; last by rewrite map_inj_uniq ?enum_uniq.
by rewrite big_map big_enum; apply: eq_bigr => t _; rewrite keyE.
Qed.

Let displaced t : q + offset t - q = offset t.
Proof. by rewrite addrC addKr. Qed.

Definition total h : R := \sum_t (A t h - o h) + keys%:R * o h.

Hypothesis counted : #|K| = keys \/ forall h, o h = 0.

Lemma sum_positional h : \sum_k positional h (pos k - q) = total h.
Proof.
transitivity (\sum_k (positional h (pos k - q) - o h) + #|K|%:R * o h).
  by rewrite mulr_natl sumrB sumr_const subrK.
rewrite (sum_window (F := fun p => positional h (p - q) - o h)) => [|p off].
  congr (_ + _); last by case: counted => [->|->]; rewrite ?mulr0.
  by apply: eq_bigr => t _; rewrite displaced positional_tap.
by rewrite /positional; case: pickP => [t E|_]; rewrite ?subrr //; case/negP: (off t).
Qed.

Lemma positional_layer (W V : _) (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) b X :
  (forall h, Wval h *m block Wout h = total h *: V h) ->
  (forall t, \sum_h A t h *: V h = W t) -> \sum_h o h *: V h = 0 ->
  multihead pos (fun h => positional_weights pos (positional h) q) Wval Wout b X
  = convolution offset W b X q.
Proof.
move=> product tapE outE; rewrite multiheadE /convolution; congr +%R.
transitivity (\sum_k X (pos k) *m \sum_h positional h (pos k - q) *: V h).
  under [RHS]eq_bigr do rewrite mulmx_sumr; rewrite exchange_big; apply: eq_bigr => h _ /=.
  rewrite /positional_weights product /attend mulmx_suml; apply: eq_bigr => k _.
  rewrite -scalemxAl -!scalemxAr scalerA; congr (_ *: _).
  have [Z|Z] := eqVneq (total h) 0; last by rewrite sum_positional divfK.
  have := psumr_eq0P (P := predT) (fun j _ => positional_ge0 h (pos j - q)).
  by rewrite sum_positional => /(_ Z) ->; rewrite ?mul0r.
rewrite (sum_window (F := fun p => X p *m \sum_h positional h (p - q) *: V h)) => [|p off].
  apply: eq_bigr => t _; rewrite displaced -tapE; congr mulmx.
  by apply: eq_bigr => h _; rewrite positional_tap.
rewrite (eq_bigr (fun h => o h *: V h)) ?outE ?mulmx0 // => h _; rewrite /positional.
by case: pickP => // t E; case/negP: (off t).
Qed.
End Positional.

(** ** Depth: heads multiply *)
Lemma stack_is_one_layer (R : comRingType) K D K' D' (f : 'M[R]_(K, D) -> 'M[R]_(K', D')) heads :
  positional_stack f heads -> let N := (\prod_(n <- heads) n)%N in
  exists (A : 'I_N -> 'M[R]_(K', K)) (V : 'I_N -> 'M[R]_(D, D')) (C : 'M[R]_(K', D')),
  forall X, f X = C + \sum_p A p *m X *m V p.
Proof.
elim=> {K' D' f heads} [f fE|K' D' K'' D'' heads f n A V C g _ [A' [V' [C' fE]]] gE] /=.
  rewrite big_nil; exists (fun=> 1%:M), (fun=> 1%:M), 0 => X.
  by rewrite big_ord1 mul1mx mulmx1 add0r fE.
rewrite big_cons; set m := (\prod_(n <- heads) n)%N in A' V' fE *.
pose way (p : 'I_(n * m)) : 'I_n * 'I_m := enum_val (cast_ord (esym (mxvec_cast n m)) p).
have wayE h p : way (mxvec_index h p) = (h, p) by rewrite /way /mxvec_index cast_ordK enum_rankK.
exists (fun p => A (way p).1 *m A' (way p).2), (fun p => V' (way p).2 *m V (way p).1).
exists (C + \sum_h A h *m C' *m V h) => X.
rewrite gE -addrA; congr +%R; rewrite (reindex _ (curry_mxvec_bij n m)) /=.
rewrite (eq_bigr (fun h => A h *m C' *m V h + \sum_p A h *m A' p *m X *m (V' p *m V h))) => [|h _].
  rewrite big_split pair_bigA; congr +%R; apply: eq_bigr => -[h p] _ /=.
  by rewrite wayE.
rewrite fE mulmxDr mulmxDl; congr +%R; rewrite mulmx_sumr mulmx_suml.
by apply: eq_bigr => p _; rewrite !mulmxA.
Qed.

Lemma rank_le_product (F : fieldType) (G : zmodType) Din Dout N K K' (pos : 'I_K -> G)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[F]_(Din, Dout)) b q (i : 'I_K') f heads :
  injective offset -> sees_window pos offset q -> positional_stack f heads ->
  (forall X : image F G Din, (forall p, ~~ on pos p -> X p = 0) ->
   row i (f (\matrix_k X (pos k))) = convolution offset W b X q) ->
  (\rank (taps W) <= \prod_(n <- heads) n)%N.
Proof.
move=> offsetI seen /stack_is_one_layer[A [V [C fE]]] same.
apply: (@rank_le_heads F G Din Dout Dout _ N _ pos offset W (fun p k => A p i k) V
  (stack (fun=> 1%:M)) (row i C) b q (on pos)) => // [X off|t]; last first.
  by have [k kE] := seen t; apply/existsP; exists k; rewrite kE.
rewrite -same // multiheadE fE linearD linear_sum; congr +%R; apply: eq_bigr => p _ /=.
rewrite block_stack mulmx1 2!row_mul; congr mulmx; rewrite mulmx_sum_row; apply: eq_bigr => k _.
by rewrite rowK mxE.
Qed.

(** A residual, with a projection, is one head more. *)
Lemma residual_stack (R : comRingType) K D K' D' D'' (f : 'M[R]_(K, D) -> 'M[R]_(K', D')) heads n
    (A : 'I_n -> 'M[R]_K') (V : 'I_n -> 'M[R]_(D', D'')) C (P : 'M[R]_(D', D'')) :
  positional_stack f heads ->
  positional_stack (fun X => f X *m P + (C + \sum_h A h *m f X *m V h)) (n.+1 :: heads).
Proof.
move=> stacked; apply: (one_more (n := n.+1) (A := fun h => if unlift ord0 h is Some h then A h else 1%:M)
  (V := fun h => if unlift ord0 h is Some h then V h else P) (C := C)) stacked _ => X.
rewrite big_ord_recl unlift_none mul1mx addrCA; congr (_ + (_ + _)).
by apply: eq_bigr => h _; rewrite liftK.
Qed.

(** ** Two layers *)
Section TwoLayers.
Variables (F : fieldType) (Din Dout m n : nat) (W : 'I_m -> 'I_n -> 'M[F]_(Din, Dout)).

Let matricised := matricisation W.

Lemma matricisedE i c j o : matricised (mxvec_index i c) (mxvec_index j o) = W i j c o.
Proof. by rewrite mxE mxvecE mxE mxvecE mxE. Qed.

Lemma two_layers_iff E : (exists (U : 'I_m -> 'M[F]_(Din, E)) (Z : 'I_n -> 'M[F]_(E, Dout)),
   forall i j, U i *m Z j = W i j) <-> (\rank matricised <= E)%N.
Proof.
split=> [[U [Z product]]|wide].
  pose L : 'M[F]_(m * Din, E) := stack U.
  pose T : 'M[F]_(E, n * Dout) := \matrix_(e, s) mxvec (\matrix_(j, o) Z j e o) 0 s.
  have -> : matricised = L *m T.
    apply/matrixP => s t; case/mxvec_indexP: s => i c; case/mxvec_indexP: t => j o.
    rewrite matricisedE -product !mxE; apply: eq_bigr => e _.
    by rewrite !mxE !mxvecE !mxE.
  exact: leq_trans (mxrankM_maxr _ _) (rank_leq_row _).
pose U i : 'M[F]_(Din, E) := \matrix_(c, e)
  (col_base matricised *m pid_mx (\rank matricised) : 'M_(_, E)) (mxvec_index i c) e.
pose Z j : 'M[F]_(E, Dout) := \matrix_(e, o)
  (pid_mx (\rank matricised) *m row_base matricised : 'M_(E, _)) e (mxvec_index j o).
exists U, Z => i j; apply/matrixP => c o; rewrite -matricisedE.
have <- : (col_base matricised *m pid_mx (\rank matricised) : 'M_(_, E)) *m
    (pid_mx (\rank matricised) *m row_base matricised) = matricised.
  rewrite mulmxA -(mulmxA (col_base _)) mul_pid_mx minnn (minn_idPr wide) pid_mx_1 mulmx1.
  exact: mulmx_base.
by rewrite [LHS]mxE [RHS]mxE; apply: eq_bigr => e _; rewrite [U i _ _]mxE [Z j _ _]mxE.
Qed.
End TwoLayers.

Lemma two_convolutions (R : ringType) (G : zmodType) Din E Dout m n (alpha : 'I_m -> G) (beta : 'I_n -> G)
    (U : 'I_m -> 'M[R]_(Din, E)) (Z : 'I_n -> 'M[R]_(E, Dout)) b X q :
  convolution beta Z b (convolution alpha U 0 X) q
  = b + \sum_i \sum_j X (q + (alpha i + beta j)) *m (U i *m Z j).
Proof.
rewrite /convolution exchange_big; congr +%R; apply: eq_bigr => j _ /=.
rewrite add0r mulmx_suml; apply: eq_bigr => i _.
by rewrite mulmxA addrA addrAC.
Qed.

(** ** Narrow heads *)
Section Splits.
Variables (F : fieldType) (m d n : nat).

Lemma rank_sum (I : finType) (P : pred I) (A : I -> 'M[F]_(m, d)) (B : I -> 'M[F]_(d, n)) :
  (\rank (\sum_(i | P i) A i *m B i : 'M[F]_(m, n))%R <= #|P| * d)%N.
Proof.
rewrite -sum_nat_const (_ : (\sum_(i in P) d = \sum_(i | P i) d)%N) //.
apply: (big_ind2 (fun (M : 'M[F]_(m, n)) k => \rank M <= k)%N) => [|M k M' k' le le'|i _].
- by rewrite mxrank0.
- exact: leq_trans (mxrank_add _ _) (leq_add le le').
- exact: leq_trans (mxrankM_maxr _ _) (rank_leq_row _).
Qed.

(** A matrix of rank at most p d is a sum of p products through d dimensions. *)
Lemma split_matrix (I : finType) (P : pred I) (W : 'M[F]_(m, n)) : (\rank W <= #|P| * d)%N ->
  exists (A : I -> 'M[F]_(m, d)) (B : I -> 'M[F]_(d, n)), \sum_(i | P i) A i *m B i = W.
Proof.
move=> low; pose p := #|P|.
pose L : 'M[F]_(m, p * d) := col_base W *m pid_mx (\rank W).
pose T : 'M[F]_(p * d, n) := pid_mx (\rank W) *m row_base W.
have LT : L *m T = W.
  by rewrite mulmxA -(mulmxA (col_base _)) mul_pid_mx minnn (minn_idPr low) pid_mx_1 mulmx1 mulmx_base.
pose A (j : 'I_p) : 'M[F]_(m, d) := \matrix_(c, e) L c (mxvec_index j e).
have pick (M : lmodType F) (f : 'I_p -> M) (j : 'I_p) :
    \sum_j' (enum_val j' == enum_val j)%:R *: f j' = f j.
  rewrite (bigD1 j) //= eqxx scale1r big1 ?addr0 // => j' jj'.
  by rewrite (inj_eq enum_val_inj) (negbTE jj') scale0r.
exists (fun i => \sum_j (enum_val j == i)%:R *: A j), (fun i => \sum_j (enum_val j == i)%:R *: block T j).
rewrite (_ : \sum_(i | P i) _ = \sum_(i in P) (\sum_j (enum_val j == i)%:R *: A j)
  *m (\sum_j (enum_val j == i)%:R *: block T j)) // big_enum_val -[RHS]LT.
apply/matrixP => c o; rewrite summxE mxE (reindex _ (curry_mxvec_bij p d)) /=.
transitivity (\sum_j \sum_e L c (mxvec_index j e) * T (mxvec_index j e) o).
  by apply: eq_bigr => j _; rewrite !pick mxE; apply: eq_bigr => e _; rewrite !mxE.
by rewrite pair_bigA; apply: eq_bigr => -[j e].
Qed.
End Splits.

Section OneTap.
Variables (F : fieldType) (G : zmodType) (Din Dh Dout Nh N : nat) (K : finType) (pos : K -> G).
Variables (offset : 'I_N -> G) (W : 'I_N -> 'M[F]_(Din, Dout)) (f : 'I_Nh -> 'I_N) (q : G).
Hypotheses (posI : injective pos) (offsetI : injective offset) (seen : sees_window pos offset q).
Let a h k : F := (pos k - q == offset (f h))%:R.

Lemma one_tap_heads :
  (exists (Wval : 'I_Nh -> 'M[F]_(Din, Dh)) (Wout : 'M[F]_(Nh * Dh, Dout)),
   forall b X, multihead pos a Wval Wout b X = convolution offset W b X q)
  <-> (forall t, \rank (W t) <= #|[pred h | f h == t]| * Dh)%N.
Proof.
split=> [[Wval [Wout same]] t|low].
  have -> : W t = \sum_(h | f h == t) Wval h *m block Wout h; last exact: rank_sum.
  have one_hot b X := shift_sum_any_map (q := q) posI Wval Wout b X (fun h => seen (f h)) (fun _ _ => erefl).
  apply/row_matrixP => i; rewrite 2!rowE.
  have := same 0 (fun p => (p == q + offset t)%:R *: delta_mx 0 i); rewrite one_hot /convolution !add0r.
  have at_t (M : 'I_N -> 'M[F]_(Din, Dout)) :
      \sum_t' (q + offset t' == q + offset t)%:R *: delta_mx 0 i *m M t' = delta_mx 0 i *m M t.
    rewrite (bigD1 t) //= eqxx scale1r big1 ?addr0 // => t' tt'.
    by rewrite (inj_eq (addrI q)) (inj_eq offsetI) (negbTE tt') scale0r mul0mx.
  by rewrite !at_t.
have [A AE] := fin_all_exists (fun t => split_matrix (low t)).
have [B BE] := fin_all_exists AE.
exists (fun h => A (f h) h), (stack (fun h => B (f h) h)) => b X.
rewrite (shift_sum_any_map (q := q) posI _ _ b X (fun h => seen (f h)) (fun _ _ => erefl)).
rewrite /convolution; congr +%R; apply: eq_bigr => t _; congr mulmx; rewrite -BE.
by apply: eq_bigr => h /eqP <-; rewrite block_stack.
Qed.
End OneTap.

(** Blocks beside each other, times blocks below each other. *)
Definition beside (F : fieldType) m d H (A : 'I_H -> 'M[F]_(m, d)) : 'M[F]_(m, H * d) :=
  \matrix_(c, s) mxvec (\matrix_(h, e) A h c e) 0 s.

Lemma beside_stack (F : fieldType) m d n H (A : 'I_H -> 'M[F]_(m, d)) (B : 'I_H -> 'M[F]_(d, n)) :
  beside A *m stack B = \sum_h A h *m B h.
Proof.
apply/matrixP => c o; rewrite summxE mxE (reindex _ (curry_mxvec_bij H d)) /=.
under [RHS]eq_bigr do rewrite mxE.
by rewrite pair_bigA; apply: eq_bigr => -[h e] _ /=; rewrite !mxE !mxvecE !mxE.
Qed.

Lemma block_terms (F : fieldType) (G : zmodType) Din Dh Dout Nh N (K : finType) (pos : K -> G)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[F]_(Din, Dout)) (a : 'I_Nh -> K -> F)
    (Wval : 'I_Nh -> 'M[F]_(Din, Dh)) (Wout : 'M[F]_(Nh * Dh, Dout)) b b' q (free : pred G) :
  injective offset -> (forall t, free (q + offset t)) ->
  (forall X : image F G Din, (forall p, ~~ free p -> X p = 0) ->
   multihead pos a Wval Wout b' X = convolution offset W b X q) ->
  [/\ forall t, W t = \sum_h (\sum_(k | pos k == q + offset t) a h k) *: (Wval h *m block Wout h),
      (\rank (taps W) <= Nh)%N, (\rank (matricisation (fun (_ : 'I_1) t => W t)) <= Nh * Dh)%N
    & (\rank (matricisation (fun t (_ : 'I_1) => W t)) <= Nh * Dh)%N].
Proof.
move=> offsetI seen same.
have terms t : W t = \sum_h (\sum_(k | pos k == q + offset t) a h k) *: (Wval h *m block Wout h).
  by rewrite (tap_factors offsetI same (seen t)).
split=> //; first exact: rank_le_heads offsetI same seen.
  apply/two_layers_iff; exists (fun=> beside Wval).
  exists (fun t => stack (fun h => (\sum_(k | pos k == q + offset t) a h k) *: block Wout h)) => _ t.
  by rewrite beside_stack terms; apply: eq_bigr => h _; rewrite scalemxAr.
apply/two_layers_iff.
exists (fun t => beside (fun h => (\sum_(k | pos k == q + offset t) a h k) *: Wval h)).
exists (fun=> stack (block Wout)) => t _.
by rewrite beside_stack terms; apply: eq_bigr => h _; rewrite scalemxAl.
Qed.
