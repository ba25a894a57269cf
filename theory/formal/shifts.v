(** * Heads side by side, one-hot heads and soft padding (T1, T4): algebra in any ring *)
From mathcomp Require Import all_ssreflect all_algebra.
From Formal Require Import names setting.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import GRing.Theory.
Local Open Scope ring_scope.

(** Concatenation times output matrix is a sum over heads. *)
Section Concatenation.
Variables (R : ringType) (G : zmodType) (Din Dh Dout Nh : nat) (K : finType) (pos : K -> G).

Lemma concatenation (H : 'I_Nh -> 'rV[R]_Dh) (Wout : 'M[R]_(Nh * Dh, Dout)) :
  mxvec (\matrix_h H h) *m Wout = \sum_h H h *m block Wout h.
Proof.
apply/rowP => j; rewrite summxE mxE (reindex _ (curry_mxvec_bij _ _)) /=.
under [RHS]eq_bigr do rewrite mxE.
by rewrite pair_bigA; apply: eq_bigr => -[h i] _ /=; rewrite mxvecE !mxE.
Qed.

Lemma multiheadE (a : 'I_Nh -> K -> R) (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(_, Dout))
    b X :
  multihead pos a Wval Wout b X = b + \sum_h attend pos (a h) X *m (Wval h *m block Wout h).
Proof.
by rewrite /multihead concatenation; congr +%R; apply: eq_bigr => h _; rewrite mulmxA.
Qed.

(** An output matrix is made of any blocks. *)
Definition stack (B : 'I_Nh -> 'M[R]_(Dh, Dout)) : 'M[R]_(Nh * Dh, Dout) :=
  \matrix_(s, j) mxvec (\matrix_(h, i) B h i j) 0 s.

Lemma block_stack B h : block (stack B) h = B h.
Proof. by apply/matrixP => i j; rewrite !mxE mxvecE mxE. Qed.

Lemma attend_eq (a a' : K -> R) (X : image R G Din) : a =1 a' -> attend pos a X = attend pos a' X.
Proof. by move=> aa'; apply: eq_bigr => k _; rewrite aa'. Qed.

(** A one-hot row picks a pixel. *)
Lemma attend_one_hot (a : K -> R) (X : image R G Din) (t : K) : injective pos ->
  (forall k, a k = (pos k == pos t)%:R) -> attend pos a X = X (pos t).
Proof.
move=> posI onehot; rewrite /attend (bigD1 t) //= onehot eqxx scale1r big1 ?addr0 // => k kt.
by rewrite onehot (inj_eq posI) (negbTE kt) scale0r.
Qed.
End Concatenation.

Section OneHot.
Variables (R : ringType) (G : zmodType) (Din Dh Dout Nh : nat) (K : finType) (pos : K -> G).
Hypothesis posI : injective pos.

Lemma one_hot_heads (shift : 'I_Nh -> G) (a : 'I_Nh -> K -> R) (Wval : 'I_Nh -> 'M[R]_(Din, Dh))
    (Wout : 'M[R]_(Nh * Dh, Dout)) b X q :
  sees_window pos shift q -> (forall h k, a h k = (pos k - q == shift h)%:R) ->
  multihead pos a Wval Wout b X = convolution shift (fun h => Wval h *m block Wout h) b X q.
Proof.
move=> seen onehot; rewrite multiheadE /convolution; congr +%R; apply: eq_bigr => h _.
have [t tE] := seen h; congr mulmx; rewrite -tE; apply: attend_one_hot => // k.
by rewrite onehot tE subr_eq addrC.
Qed.

Lemma shift_sum_any_map N (offset : 'I_N -> G) (f : 'I_Nh -> 'I_N) (a : 'I_Nh -> K -> R)
    (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) b X q :
  sees_window pos (fun h => offset (f h)) q ->
  (forall h k, a h k = (pos k - q == offset (f h))%:R) ->
  multihead pos a Wval Wout b X
  = convolution offset (fun t => \sum_(h | f h == t) Wval h *m block Wout h) b X q.
Proof.
move=> seen onehot; rewrite (one_hot_heads Wval Wout b X seen onehot) /convolution; congr +%R.
rewrite (partition_big f predT) //=; apply: eq_bigr => t _.
by rewrite mulmx_sumr; apply: eq_bigr => h /eqP ->.
Qed.

Lemma shift_sum N (offset : 'I_N -> G) (f : 'I_Nh -> 'I_N) (W : 'I_N -> 'M[R]_(Din, Dout))
    (a : 'I_Nh -> K -> R) (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) b X q :
  bijective f -> sees_window pos offset q ->
  (forall h k, a h k = (pos k - q == offset (f h))%:R) ->
  (forall h, Wval h *m block Wout h = W (f h)) ->
  multihead pos a Wval Wout b X = convolution offset W b X q.
Proof.
move=> [g fK gK] seen onehot product.
rewrite (shift_sum_any_map Wval Wout b X (fun h => seen (f h)) onehot) /convolution; congr +%R.
apply: eq_bigr => t _; rewrite (big_pred1 (g t)) ?product ?gK // => h.
by rewrite /= -(can_eq gK (f h)) fK.
Qed.
End OneHot.

(** Weights that agree as functions of the target are one operator. *)
Section SoftPadding.
Variables (R : ringType) (G : zmodType) (Din Dh Dout Nh : nat) (K : finType) (pos : K -> G).
Variable (shift : 'I_Nh -> G).

Lemma rows_factor (a : 'I_Nh -> K -> R) (P : G -> K -> R) (Wval : 'I_Nh -> 'M[R]_(Din, Dh))
    (Wout : 'M[R]_(Nh * Dh, Dout)) b X q : (forall h, a h =1 P (q + shift h)) ->
  multihead pos a Wval Wout b X
  = convolution shift (fun h => Wval h *m block Wout h) b (fun t => attend pos (P t) X) q.
Proof.
move=> aP; rewrite multiheadE /convolution; congr +%R; apply: eq_bigr => h _.
by congr mulmx; apply: attend_eq.
Qed.

(** Conversely, one pixel and one head at a time show the weights. *)
Lemma rows_unique (a : 'I_Nh -> K -> R) (P : G -> K -> R) (q : G) :
  injective pos -> (0 < Din)%N -> (0 < Dh)%N -> (0 < Dout)%N ->
  (forall (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) b X,
   multihead pos a Wval Wout b X
   = convolution shift (fun h => Wval h *m block Wout h) b (fun t => attend pos (P t) X) q) ->
  forall h, a h =1 P (q + shift h).
Proof.
move=> posI Din0 Dh0 Dout0 factors h k.
pose i := Ordinal Din0; pose m := Ordinal Dh0; pose o := Ordinal Dout0.
pose Wval (g : 'I_Nh) : 'M[R]_(Din, Dh) := delta_mx i m.
pose Wout := stack (fun g : 'I_Nh => (g == h)%:R *: delta_mx m o : 'M[R]_(Dh, Dout)).
pose X (p : G) : 'rV[R]_Din := (p == pos k)%:R *: delta_mx 0 i.
have see (w : K -> R) : attend pos w X = w k *: delta_mx 0 i.
  rewrite /attend (bigD1 k) //= /X eqxx scale1r big1 ?addr0 // => j jk.
  by rewrite (inj_eq posI) (negbTE jk) scale0r scaler0.
have one (w : 'I_Nh -> K -> R) :
    (\sum_g attend pos (w g) X *m (Wval g *m block Wout g)) 0 o = w h k.
  rewrite (bigD1 h) //= block_stack eqxx scale1r see -scalemxAl mul_delta_mx.
  rewrite mul_delta_mx big1 ?addr0 => [|g gh]; first by rewrite !mxE !eqxx mulr1.
  by rewrite block_stack (negbTE gh) scale0r !mulmx0.
have := factors Wval Wout 0 X; rewrite multiheadE /convolution !add0r => /(congr1 (fun y : 'rV[R]_Dout => y 0 o)).
by rewrite !one.
Qed.

Lemma factors_iff (Q : pred G) (a : 'I_Nh -> G -> K -> R) :
  injective pos -> (0 < Din)%N -> (0 < Dh)%N -> (0 < Dout)%N ->
  (exists P : G -> K -> R,
     forall (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) b X q, Q q ->
     multihead pos (fun h => a h q) Wval Wout b X
     = convolution shift (fun h => Wval h *m block Wout h) b (fun t => attend pos (P t) X) q)
  <-> (forall h h' q q', Q q -> Q q' -> q + shift h = q' + shift h' -> a h q =1 a h' q').
Proof.
move=> posI Din0 Dh0 Dout0; split=> [[P factors] h h' q q' Qq Qq' meet k | agree].
  have aP g p (Qp : Q p) := rows_unique posI Din0 Dh0 Dout0
    (fun Wval Wout b X => factors Wval Wout b X p Qp) g.
  by rewrite (aP h q Qq) (aP h' q' Qq') meet.
pose P t k := if [pick h | Q (t - shift h)] is Some h then a h (t - shift h) k else 0.
exists P => Wval Wout b X q Qq; apply: rows_factor => h k; rewrite /P.
case: pickP => [g Qg | /(_ h)]; last by rewrite addrK Qq.
by apply: agree => //; rewrite subrK.
Qed.
End SoftPadding.
