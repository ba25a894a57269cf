(** * Attention expresses convolution (T3) *)
From mathcomp Require Import all_ssreflect all_algebra zify ring.
From Formal Require Import names setting shifts exponential leak.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(** Every matrix factors through a space of the smaller of its dimensions, or more. *)
Section Factors.
Variables (R : fieldType) (m n k : nat).
Hypothesis wide : (minn m n <= k)%N.

Definition left_factor (W : 'M[R]_(m, n)) : 'M[R]_(m, k) :=
  if (m <= n)%N then pid_mx m else W *m pid_mx n.
Definition right_factor (W : 'M[R]_(m, n)) : 'M[R]_(k, n) :=
  if (m <= n)%N then pid_mx m *m W else pid_mx n.

Lemma factorsK W : left_factor W *m right_factor W = W.
Proof.
have unit p : (p <= k)%N -> (pid_mx p : 'M[R]_(p, k)) *m (pid_mx p : 'M[R]_(k, p)) = 1%:M.
  by move=> pk; rewrite mul_pid_mx minnn (minn_idPr pk) pid_mx_1.
rewrite /left_factor /right_factor; case: (leqP m n) wide => [mn mk|nm nk].
  by rewrite mulmxA unit ?mul1mx.
by rewrite -mulmxA unit ?mulmx1.
Qed.
End Factors.

Section Error.
Variables (R : realFieldType) (G : zmodType) (Din Dout N : nat) (K : finType) (pos : K -> G).
Variables (offset : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout).
Variables (X : image R G Din) (q : G) (a : 'I_N -> K -> R) (t : 'I_N -> K).
Hypothesis tE : forall h, pos (t h) = q + offset h.
Hypothesis a_sum1 : forall h, \sum_k a h k = 1.

(** The error is what the heads read beside their targets. *)
Lemma error_identity :
  b + \sum_h attend pos (a h) X *m W h - convolution offset W b X q
  = \sum_h \sum_(k | k != t h) a h k *: (X (pos k) - X (pos (t h))) *m W h.
Proof.
rewrite /convolution opprD addrACA subrr add0r -sumrB; apply: eq_bigr => h _.
rewrite -tE -mulmxBl -mulmx_suml; congr mulmx.
rewrite -[X (pos (t h)) in LHS]scale1r -(a_sum1 h) scaler_suml -sumrB.
rewrite (bigD1 (t h)) //= subrr add0r; apply: eq_bigr => k _; by rewrite scalerBr.
Qed.

Hypothesis a_ge0 : forall h k, 0 <= a h k.
Variable range : 'I_Din -> R.
Hypothesis rangeP : forall c k k', `|X (pos k) 0 c - X (pos k') 0 c| <= range c.

Lemma error_bound eps o : (forall h, 1 - a h (t h) <= eps) ->
  `|(b + \sum_h attend pos (a h) X *m W h) 0 o - convolution offset W b X q 0 o|
  <= eps * \sum_h \sum_c `|W h c o| * range c.
Proof.
move=> leak; have := congr1 (fun y : 'rV[R]_Dout => y 0 o) error_identity.
rewrite mxE [X in _ + X = _]mxE => ->; rewrite summxE.
apply: le_trans (ler_norm_sum _ _ _) _; rewrite mulr_sumr; apply: ler_sum => h _.
have -> : (\sum_(k | k != t h) a h k *: (X (pos k) - X (pos (t h))) *m W h) 0 o
    = \sum_(k | k != t h) a h k * \sum_c (X (pos k) 0 c - X (pos (t h)) 0 c) * W h c o.
  rewrite summxE; apply: eq_bigr => k _; rewrite -scalemxAl !mxE; congr (_ * _).
  by apply: eq_bigr => c _; rewrite !mxE.
apply: (@le_trans _ _ (\sum_(k | k != t h) a h k * \sum_c `|W h c o| * range c)).
  apply: le_trans (ler_norm_sum _ _ _) _; apply: ler_sum => k _.
  rewrite normrM (ger0_norm (a_ge0 h k)) ler_wpM2l //.
  apply: le_trans (ler_norm_sum _ _ _) _; apply: ler_sum => c _.
  by rewrite normrM mulrC ler_wpM2l.
rewrite -mulr_suml; apply: ler_wpM2r.
  apply: sumr_ge0 => c _; apply: mulr_ge0 => //.
  exact: le_trans (normr_ge0 _) (rangeP c (t h) (t h)).
by rewrite (le_trans _ (leak h)) // -(a_sum1 h) [X in _ <= X - _](bigD1 (t h)) //= addrC addKr.
Qed.
End Error.

Section Layer.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (d Din Dh Dout N : nat).
Variables (alpha : R) (offset : 'I_N -> position d).
Variables (Wval : 'I_N -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(N * Dh, Dout)) (b : 'rV[R]_Dout).
Let L := quadratic_layer alpha offset Wval Wout b.

(** Of the four terms only the last is left. *)
Lemma quadratic_layer_score X h q k :
  score (@encoding R d) L X h q k = (request alpha (offset h) *m (encoding R (k - q))^T) 0 0.
Proof. by rewrite /score /= !mulmx0 !trmx0 !mulmx0 !mul0mx !add0r mulmx1. Qed.

Lemma quadratic_layerE (K : finType) (pos : K -> position d) X q :
  self_attention e (@encoding R d) L pos X q
  = b + \sum_h attend pos (quadratic_weights e alpha pos q (offset h)) X
        *m (Wval h *m block Wout h).
Proof.
rewrite /self_attention multiheadE; congr +%R; apply: eq_bigr => h _; congr mulmx.
by apply: attend_eq => k; apply: softmax_eq => j; rewrite quadratic_layer_score.
Qed.

Lemma quadratic_layer_error (W : 'I_N -> 'M[R]_(Din, Dout)) (K : finType) (pos : K -> position d)
    (X : image R _ Din) q (range : 'I_Din -> R) eps o :
  (forall h, Wval h *m block Wout h = W h) -> sees_window pos offset q ->
  (forall c k k', `|X (pos k) 0 c - X (pos k') 0 c| <= range c) ->
  (forall h t, pos t = q + offset h ->
     1 - quadratic_weights e alpha pos q (offset h) t <= eps) ->
  `|self_attention e (@encoding R d) L pos X q 0 o - convolution offset W b X q 0 o|
  <= eps * \sum_h \sum_c `|W h c o| * range c.
Proof.
move=> product seen rangeP leak; rewrite quadratic_layerE; under eq_bigr do rewrite product.
have key h : {t | pos t == q + offset h}.
  by apply: sigW; have [t tE] := seen h; exists t; apply/eqP.
have tE h : pos (sval (key h)) = q + offset h by apply/eqP; case: (key h).
pose a h := quadratic_weights e alpha pos q (offset h).
have a_sum1 h : \sum_k a h k = 1 := softmax_sum1 expo _ (sval (key h)).
have a_ge0 h k : 0 <= a h k by apply/ltW/softmax_gt0.
exact: (error_bound W b tE a_sum1 a_ge0 rangeP o (fun h => leak h _ (tE h))).
Qed.
End Layer.

(** One tap, and all other pixels equal: the bound's only loss is that of the leak. *)
Section Tight.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (d Din Dh Dout : nat).

Lemma one_tap_error alpha (offset : 'I_1 -> position d) (Wval : 'I_1 -> 'M[R]_(Din, Dh))
    (Wout : 'M[R]_(1 * Dh, Dout)) b (K : finType) (pos : K -> position d) (X : image R _ Din) q t r :
  pos t = q + offset 0 -> (forall k, k != t -> X (pos k) = r) ->
  self_attention e (@encoding R d) (quadratic_layer alpha offset Wval Wout b) pos X q
    - convolution offset (fun h => Wval h *m block Wout h) b X q
  = (1 - quadratic_weights e alpha pos q (offset 0) t) *: (r - X (pos t))
    *m (Wval 0 *m block Wout 0).
Proof.
move=> tE Xr; rewrite quadratic_layerE //.
have tE1 (h : 'I_1) : pos t = q + offset h by rewrite ord1.
pose a (h : 'I_1) := quadratic_weights e alpha pos q (offset h).
have a_sum1 h : \sum_k a h k = 1 := softmax_sum1 expo _ t.
rewrite (error_identity (t := fun=> t) _ b X tE1 a_sum1) big_ord1 -mulmx_suml; congr mulmx.
under eq_bigr => k kt do rewrite Xr //.
have -> : 1 - quadratic_weights e alpha pos q (offset 0) t = \sum_(k | k != t) a 0 k.
  by rewrite -(a_sum1 0) (bigD1 t) //= addrC addKr.
by rewrite scaler_suml.
Qed.
End Tight.

Section Epsilon.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (d Din Dh Dout N : nat).
Variables (offset : 'I_N -> position d) (W : 'I_N -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout).

(** The sharpness 2dV/eta + 1, in a field that need not have a logarithm. *)
Lemma sharp_enough (V eta : R) : 0 < eta -> 0 <= V -> exists2 alpha, 0 < alpha &
  d%:R * (2%:R * (e (- alpha) / (1 - e (- alpha) ^+ 3))) * V <= eta.
Proof.
move=> eta0 V0; pose w := 2%:R * d%:R * V / eta.
have w0 : 0 <= w by rewrite divr_ge0 ?mulr_ge0 ?ler0n // ltW.
have alpha0 : 0 < w + 1 by rewrite ltr_wpDl ?ltr01.
exists (w + 1) => //; set x := e _.
have x0 : 0 < x := exp_gt0 expo _; have x1 : x < 1 := exp_neg_lt1 expo alpha0.
have x3 : 0 < 1 - x ^+ 3 by rewrite subr_gt0 exprn_ilt1 // ltW.
have small : x / (1 - x ^+ 3) <= (w + 1)^-1.
  rewrite ler_pdivrMr // ler_pdivlMl //.
  have := expN_le expo (ltW alpha0); rewrite -/x -[leRHS]mul1r ler_pdivlMr; last first.
    by rewrite addr_gt0 ?ltr01.
  rewrite mulrDr mulr1 => xw; rewrite lerBrDr (le_trans _ xw) // [leLHS]addrC mulrC lerD2r.
  by rewrite exprS ler_piMr ?(ltW x0) // exprn_ile1 // ltW.
have -> : d%:R * (2%:R * (x / (1 - x ^+ 3))) * V = 2%:R * d%:R * V * (x / (1 - x ^+ 3)).
  by move: (x / _) => z; ring.
apply: le_trans (ler_wpM2l _ small) _; first by rewrite !mulr_ge0 ?ler0n.
rewrite ler_pdivrMr // /w; have -> : eta * (2%:R * d%:R * V / eta + 1) = 2%:R * d%:R * V + eta.
  by move: (2%:R * _ * V) => z; field; rewrite gt_eqF.
by rewrite lerDl ltW.
Qed.

Lemma epsilon_layer (B eta : R) : (minn Din Dout <= Dh)%N -> 0 < eta ->
  exists L : layer R Din (1 + d) (1 + d) Dh Dout N,
  forall (K : finType) (pos : K -> position d) (X : image R _ Din) (q : position d),
    injective pos -> sees_window pos offset q -> (forall k c, `|X (pos k) 0 c| <= B) ->
  forall o, `|self_attention e (@encoding R d) L pos X q 0 o - convolution offset W b X q 0 o| <= eta.
Proof.
move=> wide eta0; pose range := 2%:R * `|B|; have range0 : 0 <= range by rewrite mulr_ge0 ?ler0n.
pose V := \sum_o \sum_h \sum_c `|W h c o| * range.
have V0 : 0 <= V by do 3!(apply: sumr_ge0 => ? _); apply: mulr_ge0.
have [alpha alpha0 sharp] := sharp_enough eta0 V0.
exists (quadratic_layer alpha offset (fun h => left_factor Dh (W h))
          (stack (fun h => right_factor Dh (W h))) b) => K pos X q posI seen XB o.
have rangeP c k k' : `|X (pos k) 0 c - X (pos k') 0 c| <= range.
  rewrite /range mulr_natl mulr2n; apply: le_trans (ler_normB _ _) _.
  by apply: lerD; apply: le_trans (XB _ _) (ler_norm _).
have leak h t (tE : pos t = q + offset h) := quadratic_leak_uniform expo posI alpha0 tE.
have product h : left_factor Dh (W h) *m block (stack (fun h => right_factor Dh (W h))) h = W h.
  by rewrite block_stack factorsK.
apply: (le_trans (quadratic_layer_error expo b o product seen rangeP leak)).
apply: le_trans _ sharp; apply: ler_wpM2l.
  rewrite !mulr_ge0 ?ler0n ?invr_ge0 ?subr_ge0 //; first exact/ltW/exp_gt0.
  by rewrite exprn_ile1 ?(ltW (exp_gt0 expo _)) ?(ltW (exp_neg_lt1 expo alpha0)).
rewrite /V (bigD1 o) //= lerDl; do 3!(apply: sumr_ge0 => ? _); exact: mulr_ge0.
Qed.
End Epsilon.

(** The kernel of the paper: K x ... x K taps and as many heads, on a padded cube of any size. *)
Section Cubes.
Variables (d K : nat).

Definition kernel_index (h : 'I_(K ^ d)) : {ffun 'I_d -> 'I_K} :=
  enum_val (cast_ord (esym (etrans (card_ffun _ _) (congr2 expn (card_ord K) (card_ord d)))) h).

Lemma kernel_index_bij : bijective kernel_index.
Proof.
apply: bij_comp; first exact: enum_val_bij.
by rewrite /kernel_index; set E := esym _; exists (cast_ord (esym E)) => i; apply/val_inj.
Qed.

Lemma padded_cube_sees (p : position d) n (q : {ffun 'I_d -> 'I_n}) :
  sees_window (fun k : {ffun 'I_d -> 'I_(n + K).-1} => cell k - p)
    (fun h => cell (kernel_index h) - p) (cell q).
Proof.
move=> h; have lt i : (q i + kernel_index h i < (n + K).-1)%N.
  by have := ltn_ord (q i); have := ltn_ord (kernel_index h i); lia.
exists [ffun i => Ordinal (lt i)]; rewrite addrA; congr (_ - p).
by apply/rowP => i; rewrite !mxE ffunE.
Qed.

Lemma cell_inj m : injective (@cell d m).
Proof.
move=> k k' /rowP kk'; apply/ffunP => i; apply/val_inj.
by have := kk' i; rewrite !mxE => -[].
Qed.

Lemma kernel_convolution (R : ringType) Din Dout (p q : position d)
    (W : {ffun 'I_d -> 'I_K} -> 'M[R]_(Din, Dout)) b (X : image R _ Din) :
  convolution (fun h => cell (kernel_index h) - p) (fun h => W (kernel_index h)) b X q
  = b + \sum_j X (q + (cell j - p)) *m W j.
Proof.
congr +%R; rewrite [RHS](reindex kernel_index) //.
by have [g fK gK] := kernel_index_bij; exists g => j _; rewrite ?fK ?gK.
Qed.
End Cubes.
