(** * One dimension expresses every convolution (T12)

    With scores c_h r the weights of a head are powers y_h^r up to its sum; Vandermonde's matrix is
    invertible, so that the output matrices tell the taps apart. *)
From mathcomp Require Import all_ssreflect all_algebra zify ring.
From Formal Require Import names setting shifts exponential.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Vandermonde.
Variables (F : fieldType) (n : nat) (y : 'I_n -> F).
Hypothesis yI : injective y.

Definition powers : 'M[F]_n := \matrix_(h, j) y h ^+ j.

(** A combination of columns that vanishes is a polynomial with too many roots. *)
Lemma powers_unit : powers \in unitmx.
Proof.
rewrite -unitmx_tr -row_free_unit -kermx_eq0; apply/rowV0P => w /sub_kermxP wP.
pose p : {poly F} := rVpoly w.
have zero h : p.[y h] = 0.
  have := congr1 (fun M : 'rV_n => M 0 h) wP; rewrite !mxE => <-.
  rewrite (horner_coef_wide _ (size_poly _ _)); apply: eq_bigr => j _.
  by rewrite coef_rVpoly_ord !mxE.
have roots : all (root p) [seq y h | h <- enum 'I_n] by apply/allP => _ /mapP[h _ ->]; apply/rootP.
have distinct : uniq [seq y h | h <- enum 'I_n] by rewrite map_inj_uniq ?enum_uniq.
have p0 : p = 0.
  have [//|pn0] := eqVneq p 0; have := max_poly_roots pn0 roots distinct.
  by rewrite size_map size_enum_ord ltnNge size_poly.
by rewrite -(rVpolyK w) -/p p0 raddf0.
Qed.
End Vandermonde.

Section Layer.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e).
Variables (G : zmodType) (Din Dout N H : nat) (offset : 'I_N -> G).
Hypothesis offsetI : injective offset.

(** Displacements are numbered: a tap by its index, every other one by N. There are H heads, head h
    with the factor c_h = h. *)
Definition number (p : G) : nat := if [pick t | offset t == p] is Some t then t : nat else N.
Definition scalar_encoding (p : G) : 'rV[R]_1 := (number p)%:R%:M.

Definition rate (h : 'I_H) : R := e h%:R.

Lemma rate_inj : injective rate.
Proof. by move=> h g /(exp_inj expo)/eqP; rewrite eqr_nat => /eqP/val_inj. Qed.

(** The inverse of the powers: its row of the number j picks the keys of that number. *)
Definition coefficient (h j : 'I_H) : R := invmx (powers rate) j h.

Lemma coefficientP (i j : 'I_H) : \sum_h coefficient h i * rate h ^+ j = (i == j)%:R.
Proof.
have := congr1 (fun M : 'M_H => M i j) (mulVmx (powers_unit rate_inj)); rewrite !mxE => <-.
by apply: eq_bigr => h _; rewrite !mxE.
Qed.

(** A query with T keys meets every tap once, and T - N other keys. *)
Definition gain (T : nat) (h : 'I_H) : R := \sum_(t < N) rate h ^+ t + (T - N)%:R * rate h ^+ N.

Definition scalar_layer (T : nat) (V : 'I_H -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout) :
    layer R Din 1 1 Dout Dout H :=
  Layer (fun=> 0) (fun=> 0) (fun=> 1%:M) (fun=> 0) (fun h : 'I_H => h%:R%:M)
    (fun h => gain T h *: V h) (stack (fun=> 1%:M)) b.

Lemma number_tap (t : 'I_N) : number (offset t) = t.
Proof. by rewrite /number; case: pickP => [s /eqP/offsetI -> //|/(_ t)]; rewrite eqxx. Qed.

Lemma number_le p : (number p <= N)%N.
Proof. by rewrite /number; case: pickP => // t _; apply: ltnW. Qed.

Lemma number_tapP p (t : 'I_N) : number p = t :> nat -> p = offset t.
Proof.
rewrite /number; case: pickP => [s /eqP <- /val_inj -> //|_ Nt].
by have := ltn_ord t; rewrite -Nt ltnn.
Qed.

Section Query.
Variables (K : finType) (pos : K -> G) (q : G).
Hypothesis posI : injective pos.
Hypothesis seen : sees_window pos offset q.
Let rho k := number (pos k - q).

Lemma tap_key t : {k | pos k = q + offset t}.
Proof.
have E : exists k, pos k == q + offset t by have [k kE] := seen t; exists k; apply/eqP.
by exists (xchoose E); apply/eqP/(xchooseP E).
Qed.

Lemma rho_tap (t : 'I_N) k : (rho k == t) = (k == sval (tap_key t)).
Proof.
case: (tap_key t) => j /= jE; apply/eqP/eqP => [/number_tapP kt|->].
  by apply: posI; rewrite jE -kt addrC subrK.
by rewrite /rho jE addrC addKr number_tap.
Qed.

Lemma sum_by_number (V : zmodType) (f : nat -> V) :
  \sum_k f (rho k) = \sum_(t < N) f t + f N *+ (#|K| - N).
Proof.
have split (U : zmodType) (g : nat -> U) :
    \sum_k g (rho k) = \sum_(t < N) g t + g N *+ #|[pred k | rho k == N]|.
  pose r k : 'I_N.+1 := Ordinal (number_le (pos k - q) : (rho k < N.+1)%N).
  rewrite (partition_big r predT) //= big_ord_recr /=; congr +%R.
    apply: eq_bigr => t _; rewrite (eq_bigl (pred1 (sval (tap_key t)))) => [|k].
      by rewrite big_pred1_eq; congr g; apply/eqP; rewrite rho_tap.
    by rewrite /= -rho_tap -val_eqE.
  rewrite (eq_bigr (fun=> g N)) => [|k /eqP/(congr1 val) /= <- //].
  by rewrite sumr_const; congr (_ *+ _); apply: eq_card => k; rewrite !inE -val_eqE.
rewrite split; congr (_ + _ *+ _).
have := split _ (fun=> 1%:Z); rewrite !sumr_const card_ord -mulrnDr !natz => -[->].
by rewrite addKn.
Qed.

Lemma gainE h : gain #|K| h = \sum_k rate h ^+ rho k.
Proof. by rewrite (sum_by_number (fun j => rate h ^+ j)) /gain mulr_natl. Qed.

Variables (b : 'rV[R]_Dout) (X : image R G Din).

Lemma scalar_weights (V : 'I_H -> 'M[R]_(Din, Dout)) T h k :
  softmax e (fun k => score scalar_encoding (scalar_layer T V b) X h q (pos k)) k
  = rate h ^+ rho k / \sum_j rate h ^+ rho j.
Proof.
have sE j : e (score scalar_encoding (scalar_layer T V b) X h q (pos j)) = rate h ^+ rho j.
  rewrite /score /= !mulmx0 !trmx0 !mulmx0 !mul0mx !add0r mulmx1 tr_scalar_mx -scalar_mxM.
  by rewrite mxE eqxx mulr1n mulrC exp_natl.
by rewrite /softmax sE; under eq_bigr do rewrite sE.
Qed.

(** The layer multiplies the pixel at key k by the sum over heads of rate^rho V. *)
Lemma scalar_layerE (V : 'I_H -> 'M[R]_(Din, Dout)) :
  self_attention e scalar_encoding (scalar_layer #|K| V b) pos X q
  = b + \sum_k X (pos k) *m \sum_h rate h ^+ rho k *: V h.
Proof.
rewrite /self_attention multiheadE; congr +%R.
under [RHS]eq_bigr do rewrite mulmx_sumr.
rewrite exchange_big; apply: eq_bigr => h _ /=.
rewrite block_stack mulmx1 gainE /attend mulmx_suml; apply: eq_bigr => k _.
rewrite scalar_weights -scalemxAl -!scalemxAr scalerA; congr (_ *: _).
have : 0 < \sum_j rate h ^+ rho j.
  rewrite (bigD1 k) //= ltr_wpDr ?exprn_gt0 ?exp_gt0 //.
  by apply: sumr_ge0 => j _; apply/exprn_ge0/ltW/exp_gt0.
by move: (\sum_j _) (_ ^+ _) => z y z0; rewrite divfK ?gt_eqF.
Qed.

Lemma window_sum (f : K -> 'rV[R]_Dout) (W : 'I_N -> 'M[R]_(Din, Dout)) :
  (forall t, f (sval (tap_key t)) = X (q + offset t) *m W t) ->
  (forall k, rho k = N -> f k = 0) ->
  b + \sum_k f k = convolution offset W b X q.
Proof.
move=> at_tap off; congr +%R.
have keyI : injective (fun t => sval (tap_key t)).
  move=> s t st; apply: offsetI; apply: (addrI q).
  by rewrite -(svalP (tap_key s)) -(svalP (tap_key t)) st.
rewrite (bigID (mem [set sval (tap_key t) | t : 'I_N])) /= big_imset /=; last by move=> ? ? _ _ /keyI.
rewrite [X in _ + X]big1 => [|k kt]; first by rewrite addr0; apply: eq_big => // t _.
apply: off; apply/eqP; rewrite eqn_leq number_le leqNgt; apply/negP => lt.
case/imsetP: kt; exists (Ordinal lt) => //; apply/eqP.
by rewrite -rho_tap.
Qed.
End Query.
End Layer.

Section Convolution.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e).
Variables (G : zmodType) (Din Dout N H T : nat) (offset : 'I_N -> G).
Variables (W : 'I_N -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout).
Hypothesis offsetI : injective offset.
Hypothesis NH : (N <= H)%N.

Let tap (t : 'I_N) : 'I_H := widen_ord NH t.

(** The matrices of the heads: the inverse of the powers, applied to the taps. *)
Definition head_matrix (h : 'I_H) : 'M[R]_(Din, Dout) := \sum_t coefficient e h (tap t) *: W t.

Lemma head_matrices_at (j : 'I_H) :
  \sum_h rate e h ^+ j *: head_matrix h = \sum_t (tap t == j)%:R *: W t.
Proof.
under eq_bigr do rewrite /head_matrix scaler_sumr.
rewrite exchange_big; apply: eq_bigr => t _ /=.
under eq_bigr do rewrite scalerA mulrC.
by rewrite -scaler_suml (coefficientP expo).
Qed.

(** N + 1 heads, or N heads if every key is a tap. *)
Lemma scalar_layer_convolution (K : finType) (pos : K -> G) (X : image R G Din) (q : G) :
  injective pos -> sees_window pos offset q -> #|K| = T -> (N < H)%N \/ T = N ->
  self_attention e (scalar_encoding R offset) (scalar_layer e N T head_matrix b) pos X q
  = convolution offset W b X q.
Proof.
move=> posI seen <- enough; rewrite (scalar_layerE expo offsetI posI seen).
pose f k := X (pos k) *m \sum_h rate e h ^+ number offset (pos k - q) *: head_matrix h.
apply: (window_sum offsetI posI (seen := seen) b (f := f)) => [t|k kN]; rewrite /f.
  have -> : number offset (pos (sval (tap_key seen t)) - q) = tap t.
    by apply/eqP; rewrite (rho_tap offsetI posI).
  rewrite head_matrices_at (bigD1 t) //= eqxx scale1r big1 ?addr0 => [|s st].
    by rewrite (svalP (tap_key seen t)).
  by rewrite -val_eqE /= val_eqE (negbTE st) scale0r.
case: enough => [lt|KN].
  rewrite kN; have := head_matrices_at (Ordinal lt) => /= ->; rewrite big1 ?mulmx0 // => t _.
  by rewrite -val_eqE /= ltn_eqF ?scale0r.
have := sum_by_number offsetI posI seen (fun j => (j == N)%:R : int).
rewrite KN subnn mulr0n addr0 [RHS]big1 => [|t _]; last by rewrite ltn_eqF ?ltn_ord.
rewrite (bigD1 k) //= kN eqxx => /eqP; rewrite gt_eqF //; apply: ltr_wpDr; rewrite ?ltr01 //.
by apply: sumr_ge0 => j _; rewrite ler0n.
Qed.
End Convolution.

(** N heads are too few where a query sees one key beside its window: N independent taps make N
    independent head matrices, which no positive weights add up to zero. *)
Section Few.
Variables (R : realFieldType) (G : zmodType) (Din Dh Dout N H : nat) (K : finType) (pos : K -> G).
Variables (offset : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout)) (a : 'I_H -> K -> R).
Variables (Wval : 'I_H -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(H * Dh, Dout)) (b : 'rV[R]_Dout) (q : G).
Hypotheses (posI : injective pos) (offsetI : injective offset) (seen : sees_window pos offset q).
Hypothesis equal : forall X, multihead pos a Wval Wout b X = convolution offset W b X q.
Let V h := Wval h *m block Wout h.

(** One pixel at a time shows what multiplies it. *)
Lemma pixel_matrix (k : K) : \sum_h a h k *: V h = \sum_(t | q + offset t == pos k) W t.
Proof.
apply/row_matrixP => i; rewrite !rowE.
pose X (p : G) : 'rV[R]_Din := (p == pos k)%:R *: delta_mx 0 i.
have := equal X; rewrite multiheadE /convolution => /addrI E.
have -> : delta_mx 0 i *m (\sum_h a h k *: V h) = \sum_h attend pos (a h) X *m V h.
  rewrite mulmx_sumr; apply: eq_bigr => h _; rewrite /attend (bigD1 k) //= /X eqxx scale1r big1.
    by rewrite addr0 -scalemxAl -scalemxAr.
  by move=> j jk; rewrite (inj_eq posI) (negbTE jk) scale0r scaler0.
rewrite E mulmx_sumr [RHS]big_mkcond; apply: eq_bigr => t _; rewrite /X.
by case: eqP => _; rewrite ?scale1r // scale0r mul0mx.
Qed.

Lemma heads_too_few (k : K) : (forall h, 0 < a h k) -> (forall t, q + offset t != pos k) ->
  (0 < N)%N -> (H <= N)%N -> ~~ row_free (\matrix_t mxvec (W t)).
Proof.
move=> a0 outside N0 HN; apply/negP => free.
have rank_W : \rank (\matrix_t mxvec (W t)) = N by apply/eqP.
have key t : {k | pos k = q + offset t}.
  by have E : exists k, pos k == q + offset t by [have [j jE] := seen t; exists j; apply/eqP];
    exists (xchoose E); apply/eqP/(xchooseP E).
pose VM : 'M[R]_(H, Din * Dout) := \matrix_h mxvec (V h).
pose A : 'M[R]_(N, H) := \matrix_(t, h) a h (sval (key t)).
have combine (c : 'I_H -> R) : (\row_h c h) *m VM = mxvec (\sum_h c h *: V h).
  rewrite mulmx_sum_row linear_sum /=; apply: eq_bigr => h _.
  by rewrite mxE linearZ /= rowK.
have WE : \matrix_t mxvec (W t) = A *m VM.
  apply/row_matrixP => t; rewrite rowK row_mul.
  have -> : row t A = \row_h a h (sval (key t)) by apply/rowP => h; rewrite !mxE.
  rewrite combine pixel_matrix (svalP (key t)) (big_pred1 t) // => s /=.
  by rewrite (inj_eq (addrI q)) (inj_eq offsetI).
have rank_V : (N <= \rank VM)%N by rewrite -rank_W WE mxrankM_maxr.
have HE : H = N by apply/eqP; rewrite eqn_leq HN (leq_trans rank_V (rank_leq_row _)).
have V_free : row_free VM by rewrite /row_free eqn_leq rank_leq_row (leq_trans HN).
have zero : (\row_h a h k) *m VM = 0.
  rewrite combine pixel_matrix big1 ?linear0 // => t /eqP tk.
  by have := outside t; rewrite tk eqxx.
have H0 : (0 < H)%N by rewrite HE.
have /rowP/(_ (Ordinal H0)) : \row_h a h k = 0.
  by apply: (row_free_inj V_free); rewrite zero mul0mx.
by rewrite !mxE => /eqP; rewrite gt_eqF.
Qed.
End Few.
