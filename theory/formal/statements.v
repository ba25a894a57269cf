(** * The statements

    Each is named by the slug of its theorem, with a suffix where a theorem has several parts, and
    opens with the sentence of the theorem's page. [proofs.v] proves every one of them under the same
    name. *)
From mathcomp Require Import all_ssreflect all_algebra reals normedtype derive sequences exp trigo.
From Formal Require Import setting setting_reals.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory numFieldNormedType.Exports.
Local Open Scope ring_scope.

(** ** T1 *)

(** Heads that each put all their attention on one shift, one head for every offset of the kernel,
    sum to the convolution exactly, in every ring, commutative or not. *)
Definition heads_that_shift_sum_to_a_convolution : Prop :=
  forall (R : ringType) (G : zmodType) (K : finType) (pos : K -> G) (Din Dh Dout Nh N : nat)
    (offset : 'I_N -> G) (f : 'I_Nh -> 'I_N) (W : 'I_N -> 'M[R]_(Din, Dout))
    (a : 'I_Nh -> K -> R) (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout))
    (b : 'rV[R]_Dout) (X : image R G Din) (q : G),
  injective pos -> bijective f -> sees_window pos offset q ->
  (forall h k, a h k = (pos k - q == offset (f h))%:R) ->
  (forall h, Wval h *m block Wout h = W (f h)) ->
  multihead pos a Wval Wout b X = convolution offset W b X q.

(** Whatever f is, the matrices of the heads that it sends to one offset add up. *)
Definition heads_that_shift_sum_to_a_convolution_any_map : Prop :=
  forall (R : ringType) (G : zmodType) (K : finType) (pos : K -> G) (Din Dh Dout Nh N : nat)
    (offset : 'I_N -> G) (f : 'I_Nh -> 'I_N)
    (a : 'I_Nh -> K -> R) (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout))
    (b : 'rV[R]_Dout) (X : image R G Din) (q : G),
  injective pos -> sees_window pos (fun h => offset (f h)) q ->
  (forall h k, a h k = (pos k - q == offset (f h))%:R) ->
  multihead pos a Wval Wout b X
  = convolution offset (fun t => \sum_(h | f h == t) Wval h *m block Wout h) b X q.

(** With q - k in place of k - q the layer is the convolution with the flipped kernel. *)
Definition heads_that_shift_sum_to_a_convolution_flipped : Prop :=
  forall (R : ringType) (G : zmodType) (K : finType) (pos : K -> G) (Din Dh Dout Nh N : nat)
    (offset : 'I_N -> G) (f : 'I_Nh -> 'I_N) (W : 'I_N -> 'M[R]_(Din, Dout))
    (a : 'I_Nh -> K -> R) (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout))
    (b : 'rV[R]_Dout) (X : image R G Din) (q : G),
  injective pos -> bijective f -> sees_window pos (fun t => - offset t) q ->
  (forall h k, a h k = (q - pos k == offset (f h))%:R) ->
  (forall h, Wval h *m block Wout h = W (f h)) ->
  multihead pos a Wval Wout b X = convolution (fun t => - offset t) W b X q.

(** ** T2 *)

(** A head with quadratic scores attends one shift: on every grid that holds the target, whatever
    the query, less than 1 − ϑ(e^−α)^−d of its attention falls on other keys. *)
Definition quadratic_scores_select_one_shift : Prop :=
  forall (R : realType) (d : nat) (alpha : R) (K : finType) (pos : K -> position d)
    (q Delta : position d) (t : K),
  (0 < d)%N -> 0 < alpha -> injective pos -> pos t = q + Delta ->
  1 - quadratic_weights expR alpha pos q Delta t < 1 - (theta_series (expR (- alpha)) ^+ d)^-1.

(** The bound is a supremum, for every query and every shift. *)
Definition quadratic_scores_select_one_shift_supremum : Prop :=
  forall (R : realType) (d : nat) (alpha : R) (q Delta : position d) (eps : R),
  0 < alpha -> 0 < eps ->
  exists (K : finType) (pos : K -> position d) (t : K),
  [/\ injective pos, pos t = q + Delta
    & 1 - (theta_series (expR (- alpha)) ^+ d)^-1 - eps
      < 1 - quadratic_weights expR alpha pos q Delta t].

(** In any ordered field with an exponential, if no key is further than N from the target on any
    axis: at most 1 - theta_N^-d. *)
Definition quadratic_scores_select_one_shift_any_field : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (alpha : R) (K : finType)
    (pos : K -> position d) (q Delta : position d) (t : K) (N : nat),
  exponential e -> injective pos -> pos t = q + Delta -> within pos (pos t) N ->
  1 - quadratic_weights e alpha pos q Delta t <= 1 - (theta (e (- alpha)) N ^+ d)^-1.

(** The cube of side 2N + 1 around the target attains this. *)
Definition quadratic_scores_select_one_shift_attained : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (alpha : R) (q Delta : position d) (N : nat),
  exponential e ->
  exists (K : finType) (pos : K -> position d) (t : K),
  [/\ injective pos, pos t = q + Delta, within pos (pos t) N
    & 1 - quadratic_weights e alpha pos q Delta t = 1 - (theta (e (- alpha)) N ^+ d)^-1].

(** The leak is at most 2dx / (1 - x^3), with x = e^-alpha, on every grid. *)
Definition quadratic_scores_select_one_shift_rate : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (alpha : R) (K : finType)
    (pos : K -> position d) (q Delta : position d) (t : K),
  exponential e -> 0 < alpha -> injective pos -> pos t = q + Delta ->
  1 - quadratic_weights e alpha pos q Delta t
  <= d%:R * (2%:R * (e (- alpha) / (1 - e (- alpha) ^+ 3))).

(** With a sharpness for each axis the bound is a product over the axes. *)
Definition quadratic_scores_select_one_shift_per_axis : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (alpha : 'I_d -> R) (K : finType)
    (pos : K -> position d) (q Delta : position d) (t : K) (N : nat),
  exponential e -> injective pos -> pos t = q + Delta -> within pos (pos t) N ->
  1 - diagonal_weights e alpha pos q Delta t <= 1 - (\prod_i theta (e (- alpha i)) N)^-1.

(** ** T3 *)

(** A multi-head self-attention layer with quadratic scores and one head for every tap of the kernel
    expresses any convolution to any accuracy, in every dimension. One layer does so for images of
    every size with values between -B and B. *)
Definition attention_expresses_convolution : Prop :=
  forall (R : realFieldType) (e : R -> R) (d Din Dh Dout N : nat) (offset : 'I_N -> position d)
    (W : 'I_N -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout) (B eta : R),
  exponential e -> (minn Din Dout <= Dh)%N -> 0 < eta ->
  exists L : layer R Din (1 + d) (1 + d) Dh Dout N,
  forall (K : finType) (pos : K -> position d) (X : position d -> 'rV[R]_Din) (q : position d),
  injective pos -> sees_window pos offset q -> (forall k c, `|X (pos k) 0 c| <= B) ->
  forall o,
  `|self_attention e (@encoding R d) L pos X q 0 o - convolution offset W b X q 0 o| <= eta.

(** Theorem 1 of the paper: K^d heads, a kernel of K x ... x K taps, odd or even, and images of n^d
    pixels for every n, padded by p before and by K - 1 - p after. *)
Definition attention_expresses_convolution_paper : Prop :=
  forall (R : realFieldType) (e : R -> R) (d Din Dh Dout K : nat) (p : position d)
    (W : {ffun 'I_d -> 'I_K} -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout) (B eta : R),
  exponential e -> (minn Din Dout <= Dh)%N -> 0 < eta ->
  exists L : layer R Din (1 + d) (1 + d) Dh Dout (K ^ d),
  forall (n : nat) (X : position d -> 'rV[R]_Din) (q : {ffun 'I_d -> 'I_n}),
  let key (k : {ffun 'I_d -> 'I_(n + K).-1}) := cell k - p in
  (forall k c, `|X (key k) 0 c| <= B) ->
  forall o,
  `|self_attention e (@encoding R d) L key X (cell q) 0 o
    - (b + \sum_j X (cell q + (cell j - p)) *m W j) 0 o| <= eta.

(** The error is at most the leak times the kernel times the range of the pixels, the leak as in
    T2. *)
Definition attention_expresses_convolution_bound : Prop :=
  forall (R : realType) (d Din Dh Dout N : nat) (offset : 'I_N -> position d)
    (W : 'I_N -> 'M[R]_(Din, Dout)) (Wval : 'I_N -> 'M[R]_(Din, Dh))
    (Wout : 'M[R]_(N * Dh, Dout)) (b : 'rV[R]_Dout) (alpha : R)
    (K : finType) (pos : K -> position d) (X : position d -> 'rV[R]_Din) (q : position d)
    (range : 'I_Din -> R),
  (0 < d)%N -> 0 < alpha -> (forall h, Wval h *m block Wout h = W h) ->
  injective pos -> sees_window pos offset q ->
  (forall c k k', `|X (pos k) 0 c - X (pos k') 0 c| <= range c) ->
  forall o,
  `|self_attention expR (@encoding R d) (quadratic_layer alpha offset Wval Wout b) pos X q 0 o
    - convolution offset W b X q 0 o|
  <= (1 - (theta_series (expR (- alpha)) ^+ d)^-1) * \sum_h \sum_c `|W h c o| * range c.

(** The sharpness ln(1 + 2dV / eta) makes it less than eta, if V bounds the double sum. *)
Definition attention_expresses_convolution_sharpness : Prop :=
  forall (R : realType) (d Din Dh Dout N : nat) (offset : 'I_N -> position d)
    (W : 'I_N -> 'M[R]_(Din, Dout)) (Wval : 'I_N -> 'M[R]_(Din, Dh))
    (Wout : 'M[R]_(N * Dh, Dout)) (b : 'rV[R]_Dout) (V eta : R)
    (K : finType) (pos : K -> position d) (X : position d -> 'rV[R]_Din) (q : position d)
    (range : 'I_Din -> R) (o : 'I_Dout),
  let alpha := ln (1 + 2%:R * d%:R * V / eta) in
  (0 < d)%N -> 0 < eta -> 0 < V -> (forall h, Wval h *m block Wout h = W h) ->
  injective pos -> sees_window pos offset q ->
  (forall c k k', `|X (pos k) 0 c - X (pos k') 0 c| <= range c) ->
  \sum_h \sum_c `|W h c o| * range c <= V ->
  `|self_attention expR (@encoding R d) (quadratic_layer alpha offset Wval Wout b) pos X q 0 o
    - convolution offset W b X q 0 o| < eta.

(** Such matrices exist: heads of dimension min(D_in, D_out) are wide enough. *)
Definition attention_expresses_convolution_factors : Prop :=
  forall (R : fieldType) (Din Dh Dout N : nat) (W : 'I_N -> 'M[R]_(Din, Dout)),
  (minn Din Dout <= Dh)%N ->
  exists (Wval : 'I_N -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(N * Dh, Dout)),
  forall h, Wval h *m block Wout h = W h.

(** The bound is tight: with one tap, and all pixels but the target equal to r, the error is the leak
    times (r - X_t) W. *)
Definition attention_expresses_convolution_tight : Prop :=
  forall (R : realFieldType) (e : R -> R) (d Din Dh Dout : nat) (alpha : R)
    (offset : 'I_1 -> position d) (Wval : 'I_1 -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(1 * Dh, Dout))
    (b : 'rV[R]_Dout) (K : finType) (pos : K -> position d) (X : position d -> 'rV[R]_Din)
    (q : position d) (t : K) (r : 'rV[R]_Din),
  exponential e -> pos t = q + offset 0 -> (forall k, k != t -> X (pos k) = r) ->
  self_attention e (@encoding R d) (quadratic_layer alpha offset Wval Wout b) pos X q
    - convolution offset (fun h => Wval h *m block Wout h) b X q
  = (1 - quadratic_weights e alpha pos q (offset 0) t) *: (r - X (pos t))
    *m (Wval 0 *m block Wout 0).

(** An exponential exists: that of the real numbers. *)
Definition attention_expresses_convolution_exponential : Prop :=
  forall R : realType, exponential (@expR R).

(** ** T4 *)

(** Attention whose heads score keys by displacement from query plus shift, and otherwise alike, is
    one operator P, the same for all heads, followed by the ordinary convolution. *)
Definition attention_is_soft_padding_then_convolution : Prop :=
  forall (R : ringType) (G : zmodType) (K : finType) (pos : K -> G) (Din Dh Dout Nh : nat)
    (S : Type) (normalise : {ffun K -> S} -> {ffun K -> R}) (score : G -> S)
    (shift : 'I_Nh -> G) (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout))
    (b : 'rV[R]_Dout) (X : image R G Din) (q : G),
  multihead pos (fun h => normalise [ffun k => score (pos k - (q + shift h))]) Wval Wout b X
  = convolution shift (fun h => Wval h *m block Wout h) b (soft_padding pos normalise score X) q.

(** Of layers whose weights do not depend on the pixels no others factor: for the queries of any
    set Q, an operator P with layer = convolution after P, for all pixels and all matrices, exists
    if and only if heads agree wherever they meet. *)
Definition attention_is_soft_padding_then_convolution_iff : Prop :=
  forall (R : ringType) (G : zmodType) (K : finType) (pos : K -> G) (Din Dh Dout Nh : nat)
    (shift : 'I_Nh -> G) (Q : pred G) (a : 'I_Nh -> G -> K -> R),
  injective pos -> (0 < Din)%N -> (0 < Dh)%N -> (0 < Dout)%N ->
  (exists P : G -> K -> R,
     forall (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) (b : 'rV[R]_Dout)
       (X : image R G Din) (q : G), Q q ->
     multihead pos (fun h => a h q) Wval Wout b X
     = convolution shift (fun h => Wval h *m block Wout h) b (fun t => attend pos (P t) X) q)
  <-> (forall h h' q q', Q q -> Q q' -> q + shift h = q' + shift h' -> a h q =1 a h' q').

(** Such a P is unique: row t is that of any head whose target is t. *)
Definition attention_is_soft_padding_then_convolution_unique : Prop :=
  forall (R : ringType) (G : zmodType) (K : finType) (pos : K -> G) (Din Dh Dout Nh : nat)
    (shift : 'I_Nh -> G) (a : 'I_Nh -> K -> R) (P : G -> K -> R) (q : G),
  injective pos -> (0 < Din)%N -> (0 < Dh)%N -> (0 < Dout)%N ->
  (forall (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) (b : 'rV[R]_Dout)
     (X : image R G Din),
   multihead pos a Wval Wout b X
   = convolution shift (fun h => Wval h *m block Wout h) b (fun t => attend pos (P t) X) q) ->
  forall h, a h =1 P (q + shift h).

(** For softmax, scores that are sums over axes and the keys of a box, P is the product of a small
    matrix for each axis. *)
Definition attention_is_soft_padding_then_convolution_kronecker : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (axis : 'I_d -> finType)
    (s : forall i, axis i -> R) (k : {dffun forall i, axis i}),
  exponential e ->
  softmax e (fun k : {dffun forall i, axis i} => \sum_i s i (k i)) k = \prod_i softmax e (s i) (k i).

(** A sink multiplies a row by what it leaves of it. *)
Definition attention_is_soft_padding_then_convolution_sink : Prop :=
  forall (R : realFieldType) (e : R -> R) (K : finType) (c : R) (s : K -> R) (k : K),
  exponential e ->
  softmax_with_sink e c s k = (\sum_j e (s j)) / (\sum_j e (s j) + e c) * softmax e s k.

(** One row, to first order: relative to the weight 1 of its limit t, the keys of a set F weigh phi in
    all and the rest psi. (A sink is one more key, of pixel 0.) *)
Definition attention_is_soft_padding_then_convolution_first_order : Prop :=
  forall (R : realFieldType) (K : finType) (t : K) (F : pred K) (w X : K -> R) (D : R),
  w t = 1 -> (forall k, 0 <= w k) -> ~~ F t -> (forall k, `|X k - X t| <= D) ->
  let phi := \sum_(k | F k) w k in
  let psi := \sum_(k | (k != t) && ~~ F k) w k in
  `|(\sum_k w k * X k) / (\sum_k w k) - X t - \sum_(k | F k) w k * (X k - X t)|
  <= (psi + phi ^+ 2) * D.

(** The Laplacian: on the grid a soft padding with quadratic scores is one step of the heat equation,
    of length x = e^-alpha, for a channel X whose pixels differ from that of the target by at most
    D. *)
Definition attention_is_soft_padding_then_convolution_laplacian : Prop :=
  forall (R : realFieldType) (e : R -> R) (alpha : R) (d : nat) (K : finType)
    (pos : K -> position d) (q Delta : position d) (t : K) (N : nat) (X : K -> R) (D : R),
  exponential e -> injective pos -> pos t = q + Delta -> within pos (pos t) N -> (0 < N)%N ->
  (forall k, `|X k - X t| <= D) ->
  let x := e (- alpha) in
  let laplacian := \sum_(k | sqnorm (pos k - pos t)%R == 1%N) (X k - X t) in
  `|\sum_k quadratic_weights e alpha pos q Delta k * X k - X t - x * laplacian|
  <= (theta x N ^+ d - 1 - 2%:R * d%:R * x + (2%:R * d%:R * x) ^+ 2) * D.

(** Nothing is forgotten: on an axis of n keys the rows of any n targets are independent, at every
    sharpness but 0, so that the pixels can be recovered from what is seen. *)
Definition attention_is_soft_padding_then_convolution_invertible : Prop :=
  forall (R : realFieldType) (e : R -> R) (alpha : R) (n : nat) (t : 'I_n -> int),
  exponential e -> alpha != 0 -> injective t ->
  \matrix_(j, k) softmax e (fun k : 'I_n => - (alpha * (k%:R - (t j)%:~R) ^+ 2)) k \in unitmx.

(** The gradient in the pixels is the convolution's own, H, through the transpose of P: for finitely
    many queries and any gradient g of the output. *)
Definition attention_is_soft_padding_then_convolution_gradient : Prop :=
  forall (R : comRingType) (G : zmodType) (K Q : finType) (pos : K -> G) (query : Q -> G)
    (Din Dout N : nat) (shift : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout)) (P : G -> K -> R)
    (X : image R G Din) (g : Q -> 'rV[R]_Dout),
  \sum_q convolution shift W 0 (fun t => attend pos (P t) X) (query q) *m (g q)^T
  = \sum_k X (pos k) *m (\sum_q \sum_h P (query q + shift h) k *: (g q *m (W h)^T))^T.

(** The gradient in the sharpness is a covariance of scores and pixels. (A sink is one more key.) *)
Definition attention_is_soft_padding_then_convolution_covariance : Prop :=
  forall (R : realType) (n : nat) (s X : 'I_n.+1 -> R) (alpha : R),
  let p := softmax (@expR R) (fun k => alpha * s k) in
  is_derive alpha (1 : R^o)
    (fun a : R^o => (\sum_k softmax (@expR R) (fun k => a * s k) k * X k) : R^o)
    (\sum_k p k * s k * X k - (\sum_k p k * s k) * \sum_k p k * X k).

(** ** T5 *)

(** A quadratic head replicates the edge. The keys are pixels of a box that hold the point nearest to
    the target, wherever the target is: less than 1 - theta^-d of the attention is off that pixel. *)
Definition borders_are_limits_of_attention_replicate : Prop :=
  forall (R : realType) (d : nat) (alpha : R) (K : finType) (pos : K -> position d)
    (lower upper q Delta : position d) (c : K),
  (0 < d)%N -> 0 < alpha -> injective pos ->
  (forall k i, lower 0 i <= pos k 0 i <= upper 0 i) -> pos c = clamp lower upper (q + Delta) ->
  1 - quadratic_weights expR alpha pos q Delta c < 1 - (theta_series (expR (- alpha)) ^+ d)^-1.

(** The same in any ordered field, if no key is further than N from that pixel on any axis. *)
Definition borders_are_limits_of_attention_replicate_any_field : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (alpha : R) (K : finType)
    (pos : K -> position d) (lower upper q Delta : position d) (c : K) (N : nat),
  exponential e -> 0 < alpha -> injective pos ->
  (forall k i, lower 0 i <= pos k 0 i <= upper 0 i) -> pos c = clamp lower upper (q + Delta) ->
  within pos (pos c) N ->
  1 - quadratic_weights e alpha pos q Delta c <= 1 - (theta (e (- alpha)) N ^+ d)^-1.

(** One more key with value zero, of score -c alpha, pads with zeros. On the grid the pixel has all
    the attention in the limit if and only if 0 < c. *)
Definition borders_are_limits_of_attention_sink_on_grid : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (c : R) (K : finType) (pos : K -> position d)
    (t : K),
  exponential e -> injective pos ->
  vanishing (fun alpha => 1 - softmax_with_sink e (- (c * alpha))
    (fun k => - (alpha * (sqnorm (pos k - pos t))%:R)) t) <-> 0 < c.

(** At a target off the grid, mu its least squared distance to a pixel, the sink has all the attention
    in the limit if and only if c < mu. So 0 < c < 1 serves every convolution. *)
Definition borders_are_limits_of_attention_sink_off_grid : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (c : R) (K : finType) (pos : K -> position d)
    (t : position d) (mu : nat),
  exponential e -> (exists k, sqnorm (pos k - t) = mu) ->
  (forall k, (mu <= sqnorm (pos k - t)%R)%N) ->
  vanishing (fun alpha => 1 - e (- (c * alpha))
    / (\sum_k e (- (alpha * (sqnorm (pos k - t))%:R)) + e (- (c * alpha)))) <-> c < mu%:R.

(** What the sink loses on the grid, at any depth c: the pixel lacks less than
    1 - 1/(theta^d + x^c), whatever the distinct integer points at which the keys are. *)
Definition borders_are_limits_of_attention_sink_leak : Prop :=
  forall (R : realType) (d : nat) (alpha c : R) (K : finType) (pos : K -> position d) (t : K),
  (0 < d)%N -> 0 < alpha -> injective pos ->
  1 - softmax_with_sink expR (- (c * alpha)) (fun k => - (alpha * (sqnorm (pos k - pos t))%:R)) t
  < 1 - (theta_series (expR (- alpha)) ^+ d + expR (- (c * alpha)))^-1.

(** This is a supremum, at every target. *)
Definition borders_are_limits_of_attention_sink_leak_supremum : Prop :=
  forall (R : realType) (d : nat) (alpha c : R) (t : position d) (eps : R),
  0 < alpha -> 0 < eps ->
  exists (K : finType) (pos : K -> position d) (k : K), [/\ injective pos, pos k = t
    & 1 - (theta_series (expR (- alpha)) ^+ d + expR (- (c * alpha)))^-1 - eps
      < 1 - softmax_with_sink expR (- (c * alpha))
              (fun j => - (alpha * (sqnorm (pos j - pos k))%:R)) k].

(** Off the grid, at spacing 1: if on some axis all keys are on one side of the target, the sink lacks
    less than R / (1 + R), with R = x^-c (theta - 1)/2 theta^(d - 1). *)
Definition borders_are_limits_of_attention_sink_leak_off_grid : Prop :=
  forall (R : realType) (d : nat) (alpha c : R) (K : finType) (pos : K -> position d)
    (t : position d) (i : 'I_d),
  0 < alpha -> injective pos ->
  (forall k, 0 < (pos k - t) 0 i) \/ (forall k, (pos k - t) 0 i < 0) ->
  let theta := theta_series (expR (- alpha)) in
  let mass := expR (c * alpha) * ((theta - 1) / 2%:R * theta ^+ d.-1) in
  1 - expR (- (c * alpha))
    / (\sum_k expR (- (alpha * (sqnorm (pos k - t))%:R)) + expR (- (c * alpha)))
  < mass / (1 + mass).

(** At depth one half one formula bounds the second by the first, so that at spacing 1 no target loses
    more than 1 - 1/(theta^d + e^(-alpha/2)). *)
Definition borders_are_limits_of_attention_sink_leak_half : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (alpha : R) (N : nat),
  exponential e -> 0 < alpha -> (0 < d)%N ->
  let t := theta (e (- alpha)) N in
  let mass := e (alpha / 2%:R) * ((t - 1) / 2%:R * t ^+ d.-1) in
  mass / (1 + mass) <= 1 - (t ^+ d + e (- (alpha / 2%:R)))^-1.

(** Other spacings, on the grid: theta(x^(s_i^2)) for an axis of spacing s_i. *)
Definition borders_are_limits_of_attention_sink_leak_spaced : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (alpha c : R) (K : finType)
    (pos index : K -> position d) (origin : position d) (s : 'I_d -> nat) (t : K) (N : nat),
  exponential e -> injective index ->
  (forall k, pos k = lattice_point origin s (index k)) -> within index (index t) N ->
  1 - softmax_with_sink e (- (c * alpha)) (fun k => - (alpha * (sqnorm (pos k - pos t))%:R)) t
  <= 1 - (\prod_i theta (e (- alpha) ^+ (s i ^ 2)) N + e (- (c * alpha)))^-1.

(** Other spacings, off the grid: if on some axis no key has the target's coordinate, and no two
    coordinates of keys are next to each other, R = x^-c 2 (x + x^9 + x^25 + ...) theta^(d - 1). *)
Definition borders_are_limits_of_attention_sink_leak_between : Prop :=
  forall (R : realFieldType) (e : R -> R) (d : nat) (alpha c : R) (K : finType)
    (pos : K -> position d) (t : position d) (i : 'I_d) (N : nat),
  exponential e -> 0 < alpha -> injective pos -> within pos t N.*2 ->
  (forall k, pos k 0 i != t 0 i) -> (forall k k', pos k 0 i != pos k' 0 i + 1) ->
  let x := e (- alpha) in
  let mass := e (c * alpha) * (2%:R * odd_theta x N * theta x N.*2 ^+ d.-1) in
  1 - e (- (c * alpha))
    / (\sum_k e (- (alpha * (sqnorm (pos k - t))%:R)) + e (- (c * alpha)))
  <= mass / (1 + mass).

(** Without a sink and without padded keys, in any ring and whatever the weights, as long as each row
    sums to one: a layer that pads with zeros at two queries, of which the first sees its whole
    window, does so only for kernels whose taps off the image at the second sum to zero, seen from
    x. *)
Definition borders_are_limits_of_attention_necessity : Prop :=
  forall (R : ringType) (G : zmodType) (K : finType) (pos : K -> G) (Din Dh Dout Nh N : nat)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout)) (a : 'I_Nh -> G -> K -> R)
    (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) (b : 'rV[R]_Dout)
    (x : 'rV[R]_Din) (q q' : G),
  let X := on_keys pos (fun=> x) in
  let layer p := multihead pos (fun h => a h p) Wval Wout b X in
  (forall h p, \sum_k a h p k = 1) -> sees_window pos offset q ->
  layer q = convolution offset W b X q -> layer q' = convolution offset W b X q' ->
  x *m (\sum_(t | ~~ on pos (q' + offset t)) W t) = 0.

(** A diagonal precision is needed: with the form v_1^2 + v_1 v_2 + v_2^2 the pixel (0, 2) of 5 x 5
    pixels, nearest to the target (-1, 2), has at most half of the attention at every sharpness. *)
Definition borders_are_limits_of_attention_precision : Prop :=
  forall (R : realFieldType) (e : R -> R) (alpha : R),
  exponential e ->
  let form (y z : int) := (y ^+ 2 + y * z + z ^+ 2)%:~R : R in
  let s (k : 'I_5 * 'I_5) := - (alpha * form (k.1%:Z + 1) (k.2%:Z - 2)) in
  softmax e s (inord 0, inord 2) <= 2%:R^-1.

(** No other mixed term escapes: with the form a y^2 + 2b yz + c z^2, b not 0, on an image of 1 x 2
    pixels there is a target (-j, m) whose clamp (0, m) has at most half of the attention at every
    sharpness alpha >= 0. *)
Definition borders_are_limits_of_attention_precision_any : Prop :=
  forall (R : archiFieldType) (e : R -> R) (alpha a b c : R),
  exponential e -> 0 <= alpha -> b != 0 ->
  exists (j : nat) (m : 'I_2),
  let form (y z : R) := a * y ^+ 2 + 2%:R * b * y * z + c * z ^+ 2 in
  softmax e (fun k : 'I_2 => - (alpha * form j%:R (k%:R - m%:R))) m <= 2%:R^-1.

(** Circular, for any encoding: if scores are those of the displacement's class on a torus T, and one
    key c is of the target's class, then it has all the attention in the limit if and only if every
    other class that a key has scores less than that of 0. *)
Definition borders_are_limits_of_attention_circular : Prop :=
  forall (R : realFieldType) (e : R -> R) (G T : zmodType) (class : {additive G -> T}) (f : T -> R)
    (K : finType) (pos : K -> G) (t : G) (c : K),
  exponential e -> class (pos c) = class t ->
  vanishing (fun alpha => 1 - softmax e (fun k => alpha * f (class (pos k - t))) c)
  <-> (forall k, k != c -> f (class (pos k - t)) < f 0).

(** How much is left to others: on a box of n_1 x ... x n_d pixels, with scores that are sums over axes,
    have the period n_i on axis i and lose at least alpha with every step either way round. The pixel
    t mod n lacks less than 1 - ((1 - x)/(1 + x))^d, wherever the target is. *)
Definition borders_are_limits_of_attention_circular_leak : Prop :=
  forall (R : realFieldType) (e : R -> R) (alpha : R) (d : nat) (n : 'I_d -> nat)
    (f : 'I_d -> int -> R) (t : position d) (c : {dffun forall i, 'I_(n i)}),
  exponential e -> (0 < d)%N -> 0 < alpha -> (forall i z, f i (z + (n i)%:Z) = f i z) ->
  (forall i (m : nat), (m < n i)%N -> alpha * (minn m (n i - m))%:R <= f i 0 - f i m%:Z) ->
  (forall i, (c i)%:Z = (t 0%R i %% (n i)%:Z)%Z) ->
  1 - softmax e (fun k : {dffun forall i, 'I_(n i)} => \sum_i f i ((k i)%:Z - t 0 i)) c
  < 1 - ((1 - e (- alpha)) / (1 + e (- alpha))) ^+ d.

(** The cosines are such scores: with the scale alpha / (1 - cos(2 pi / N)), N >= 2 at least the
    longest axis. *)
Definition borders_are_limits_of_attention_circular_cosine : Prop :=
  forall (R : realType) (alpha : R) (d N : nat) (n : 'I_d -> nat) (t : position d)
    (c : {dffun forall i, 'I_(n i)}),
  (0 < d)%N -> 0 < alpha -> (2 <= N)%N -> (forall i, n i <= N)%N ->
  (forall i, (c i)%:Z = (t 0%R i %% (n i)%:Z)%Z) ->
  let beta := alpha / (1 - cos (2%:R * pi / N%:R)) in
  1 - softmax expR (fun k : {dffun forall i, 'I_(n i)} =>
        \sum_i beta * cos (((k i)%:Z - t 0 i)%:~R * (2%:R * pi / (n i)%:R))) c
  < 1 - ((1 - expR (- alpha)) / (1 + expR (- alpha))) ^+ d.

(** Reflection by r pixels has no relative score f, on n + 1 pixels with 2 <= r <= n - 1: of the
    first two queries one gives the mirrored pixel, r or r - 1, at most half of its attention. *)
Definition borders_are_limits_of_attention_reflection : Prop :=
  forall (R : realFieldType) (e : R -> R) (n r : nat) (f : int -> R),
  exponential e -> (2 <= r)%N -> (r.+2 <= n.+1)%N ->
  softmax e (fun k : 'I_n.+1 => f k%:Z) (inord r) <= 2%:R^-1 \/
  softmax e (fun k : 'I_n.+1 => f (k%:Z - 1)) (inord r.-1) <= 2%:R^-1.

(** Reflection by r pixels, on n + 1 of them, has a relative score if and only if r is at most 1 or
    there are three pixels or fewer: one whose highest key is the mirrored pixel |q - r|, at every
    query q. *)
Definition borders_are_limits_of_attention_reflection_iff : Prop :=
  forall (R : realFieldType) (n r : nat), (r <= n)%N ->
  (exists f : int -> R, forall q k : 'I_n.+1, k != `|q%:Z - r%:Z|%N :> nat ->
     f (k%:Z - q%:Z) < f (`|q%:Z - r%:Z|%N%:Z - q%:Z))
  <-> (r <= 1)%N \/ (n <= 2)%N.

(** ** T6 *)

(** How many outputs: with n pixels, padded to m in all, k taps of dilation r and queries of stride s,
    output o has all its taps in the padded image if and only if o is less than torch's number. *)
Definition hyperparameters_are_lattices_and_offsets_outputs : Prop :=
  forall m k r s o : nat, (0 < k)%N -> (0 < s)%N -> (r * k.-1 < m)%N ->
  (forall j, (j < k)%N -> (o * s + j * r < m)%N) <-> (o < (m - r * k.-1 - 1) %/ s + 1)%N.

(** Padding by name: "same" shares out the reach R of the kernel, the odd one at the end, and at
    stride 1 there are as many outputs as pixels. *)
Definition hyperparameters_are_lattices_and_offsets_same : Prop :=
  forall n R : nat, (0 < n)%N -> ((n + R %/ 2 + (R - R %/ 2) - R - 1) %/ 1 + 1 = n)%N.

(** Groups: if matrices are zero between channels of different groups, the channels of group a of a
    convolution are the convolution of the image's channels of group a with the blocks. *)
Definition hyperparameters_are_lattices_and_offsets_groups : Prop :=
  forall (R : ringType) (G : zmodType) (g Din Dout N : nat) (offset : 'I_N -> G)
    (W : 'I_N -> 'M[R]_(g * Din, g * Dout)) (b : 'rV[R]_(g * Dout)) (X : image R G (g * Din))
    (q : G) (a : 'I_g),
  (forall t a a' c m, a != a' -> W t (mxvec_index a c) (mxvec_index a' m) = 0) ->
  row a (vec_mx (convolution offset W b X q))
  = convolution offset (fun t => diagonal_block (W t) a) (row a (vec_mx b))
      (fun p => row a (vec_mx (X p))) q.

(** Where a transposed convolution writes: output o, from 0 and with p indices cut, is reached by a
    pixel i and a tap j if o + p = i s + j r. It then lies on a canvas of (n - 1) s + R + 1 indices;
    and of dilation 1, with k <= s, in the first k of every s. *)
Definition hyperparameters_are_lattices_and_offsets_reached : Prop :=
  forall n k s r p o i j : nat, (i < n)%N -> (j < k)%N -> (o + p = i * s + j * r)%N ->
  (o + p < n.-1 * s + r * k.-1 + 1)%N /\ (r = 1 -> k <= s -> (o + p) %% s < k)%N.

(** Why torch accepts s sizes of its output and no others: they are those from which the convolution
    with the same options has just n outputs. *)
Definition hyperparameters_are_lattices_and_offsets_output_size : Prop :=
  forall L p R s n : nat, (0 < s)%N -> (R < L + 2 * p)%N -> (0 < n)%N ->
  ((L + 2 * p - R - 1) %/ s + 1 = n)%N
  <-> (exists2 e, e < s & L + 2 * p = n.-1 * s + R + 1 + e)%N.

(** A transposed convolution, with keys and queries exchanged, offsets negated and matrices
    transposed, is the adjoint, for any finite sets of keys and queries and zeros beyond both. *)
Definition hyperparameters_are_lattices_and_offsets_adjoint : Prop :=
  forall (R : comRingType) (G : zmodType) (K Q : finType) (key : K -> G) (query : Q -> G)
    (Din Dout N : nat) (offset : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout))
    (X : image R G Din) (Y : image R G Dout),
  injective key -> injective query ->
  \sum_i convolution offset W 0 (on_keys key X) (query i) *m (Y (query i))^T
  = \sum_k X (key k)
      *m (convolution (fun t => - offset t) (fun t => (W t)^T) 0 (on_keys query Y) (key k))^T.

(** Average pooling is one head, uniform over a window of keys: softmax of one score on a set of keys
    and minus infinity elsewhere. *)
Definition hyperparameters_are_lattices_and_offsets_pooling : Prop :=
  forall (R : realFieldType) (e : R -> R) (G : zmodType) (K : finType) (pos : K -> G) (D : nat)
    (window : pred K) (c : R) (X : image R G D),
  exponential e -> (exists k, window k) ->
  attend pos (masked_softmax e (fun k => if window k then Some c else None)) X
  = #|window|%:R^-1 *: \sum_(k | window k) X (pos k).

(** A window of a box has as many keys as the product over its axes. *)
Definition hyperparameters_are_lattices_and_offsets_window : Prop :=
  forall (d : nat) (axis : 'I_d -> finType) (window : forall i, pred (axis i))
    (k : {dffun forall i, axis i}),
  #|[pred f : {dffun forall i, axis i} | [forall i, window i (f i)]]| = (\prod_i #|window i|)%N.

(** How many windows with ceil_mode: window o is counted if the one before it leaves some of the
    padded image, and if it begins in the image or before. *)
Definition hyperparameters_are_lattices_and_offsets_ceil_mode : Prop :=
  forall n p w s o : nat, (0 < n)%N -> (0 < s)%N -> (w <= n + 2 * p)%N ->
  (o < minn ((n + 2 * p - w + s.-1) %/ s) ((n + p).-1 %/ s) + 1)%N
  <-> (o = 0 \/ o.-1 * s + w < n + 2 * p)%N /\ (o * s < n + p)%N.

(** ** T10 *)

(** Positional heads express a convolution only if there are as many as the rank of its taps, and that
    many, or one more, suffice. At one query, whose window shows pixels that can take any value (those
    that cannot are zero); and for all grids and all queries that see their window at once, with
    weights that are positive at the taps. *)
Definition heads_count_the_rank_of_the_kernel : Prop :=
  forall (R : realFieldType) (G : zmodType) (Din Dh Dout N : nat) (offset : 'I_N -> G)
    (W : 'I_N -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout), injective offset ->
  (forall (Nh : nat) (K : finType) (pos : K -> G) (a : 'I_Nh -> K -> R)
     (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) (b' : 'rV[R]_Dout) (q : G)
     (free : pred G), (forall t, free (q + offset t)) ->
     (forall X : image R G Din, (forall p, ~~ free p -> X p = 0) ->
      multihead pos a Wval Wout b' X = convolution offset W b X q) ->
     (\rank (taps W) <= Nh)%N) /\
  ((minn Din Dout <= Dh)%N ->
   exists (g : 'I_(\rank (taps W)).+1 -> G -> R) (Wval : 'I_(\rank (taps W)).+1 -> 'M[R]_(Din, Dh))
     (Wout : 'M[R]_((\rank (taps W)).+1 * Dh, Dout)),
   [/\ forall h p, 0 <= g h p, forall h t, 0 < g h (offset t)
     & forall (K : finType) (pos : K -> G) (X : image R G Din) (q : G),
       injective pos -> sees_window pos offset q ->
       multihead pos (fun h => positional_weights pos (g h) q) Wval Wout b X
       = convolution offset W b X q]).

(** The bound from below over any field, with weights of any sign. *)
Definition heads_count_the_rank_of_the_kernel_any_field : Prop :=
  forall (F : fieldType) (G : zmodType) (Din Dh Dout Nh N : nat) (K : finType) (pos : K -> G)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[F]_(Din, Dout)) (b b' : 'rV[F]_Dout) (a : 'I_Nh -> K -> F)
    (Wval : 'I_Nh -> 'M[F]_(Din, Dh)) (Wout : 'M[F]_(Nh * Dh, Dout)) (q : G) (free : pred G),
  injective offset -> (forall t, free (q + offset t)) ->
  (forall X : image F G Din, (forall p, ~~ free p -> X p = 0) ->
   multihead pos a Wval Wout b' X = convolution offset W b X q) ->
  (\rank (taps W) <= Nh)%N.

(** Finite logits: one head more than the rank is needed as soon as some head gives a weight to one more
    key, outside of the window. *)
Definition heads_count_the_rank_of_the_kernel_finite : Prop :=
  forall (F : fieldType) (G : zmodType) (Din Dh Dout Nh N : nat) (K : finType) (pos : K -> G)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[F]_(Din, Dout)) (b b' : 'rV[F]_Dout) (a : 'I_Nh -> K -> F)
    (Wval : 'I_Nh -> 'M[F]_(Din, Dh)) (Wout : 'M[F]_(Nh * Dh, Dout)) (q : G) (free : pred G)
    (outside : K) (h : 'I_Nh),
  injective pos -> injective offset -> (forall t, free (q + offset t)) -> free (pos outside) ->
  (forall t, q + offset t != pos outside) -> a h outside != 0 ->
  (forall X : image F G Din, (forall p, ~~ free p -> X p = 0) ->
   multihead pos a Wval Wout b' X = convolution offset W b X q) ->
  (\rank (taps W) < Nh)%N.

(** And one more suffices, with positive weights everywhere: one layer for all queries and all grids of
    so many keys. *)
Definition heads_count_the_rank_of_the_kernel_finite_suffices : Prop :=
  forall (R : realFieldType) (G : zmodType) (Din Dh Dout N keys : nat) (offset : 'I_N -> G)
    (W : 'I_N -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout),
  injective offset -> (minn Din Dout <= Dh)%N ->
  exists (g : 'I_(\rank (taps W)).+1 -> G -> R) (Wval : 'I_(\rank (taps W)).+1 -> 'M[R]_(Din, Dh))
    (Wout : 'M[R]_((\rank (taps W)).+1 * Dh, Dout)), (forall h p, 0 < g h p) /\
  forall (K : finType) (pos : K -> G) (X : image R G Din) (q : G),
  #|K| = keys -> injective pos -> sees_window pos offset q ->
  multihead pos (fun h => positional_weights pos (g h) q) Wval Wout b X
  = convolution offset W b X q.

(** Masked heads: as many as the rank suffice if 0 is not in the convex hull of the taps, as a vector c
    certifies; and they do not if some y certifies the contrary and is positive at a tap that is
    not 0. *)
Definition heads_count_the_rank_of_the_kernel_masked : Prop :=
  forall (R : realFieldType) (G : zmodType) (Din Dh Dout N : nat) (offset : 'I_N -> G)
    (W : 'I_N -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout), injective offset ->
  (forall c : 'cV[R]_(Din * Dout), (minn Din Dout <= Dh)%N -> (forall t, 0 < (taps W *m c) t 0) ->
   exists (g : 'I_(\rank (taps W)) -> G -> R) (Wval : 'I_(\rank (taps W)) -> 'M[R]_(Din, Dh))
     (Wout : 'M[R]_(\rank (taps W) * Dh, Dout)), (forall h p, 0 <= g h p) /\
   forall (K : finType) (pos : K -> G) (X : image R G Din) (q : G),
   injective pos -> sees_window pos offset q ->
   multihead pos (fun h => positional_weights pos (g h) q) Wval Wout b X
   = convolution offset W b X q) /\
  (forall (y : 'rV[R]_N) (t : 'I_N), (forall t, 0 <= y 0 t) -> y *m taps W = 0 -> 0 < y 0 t ->
   W t != 0 ->
   forall (Nh : nat) (K : finType) (pos : K -> G) (a : 'I_Nh -> K -> R)
     (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) (b' : 'rV[R]_Dout) (q : G)
     (free : pred G), (forall t, free (q + offset t)) -> (forall h k, 0 <= a h k) ->
   (forall X : image R G Din, (forall p, ~~ free p -> X p = 0) ->
    multihead pos a Wval Wout b' X = convolution offset W b X q) ->
   (\rank (taps W) < Nh)%N).

(** ** T11 *)

(** Heads of dimension D_h that look at one tap each can express a kernel if and only if every tap has
    at least ⌈rank W_δ / D_h⌉ of them, and a layer of positional heads is a sum of block terms whose
    number is at least the rank of each unfolding over what one term has of it. Head h looks at tap
    f h; the unfoldings are those of taps, inputs and outputs. *)
Definition head_dimension_is_block_term_rank : Prop :=
  forall (F : fieldType) (G : zmodType) (Din Dh Dout Nh N : nat) (K : finType) (pos : K -> G)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[F]_(Din, Dout)) (q : G), injective offset ->
  (forall f : 'I_Nh -> 'I_N, injective pos -> sees_window pos offset q ->
   (exists (Wval : 'I_Nh -> 'M[F]_(Din, Dh)) (Wout : 'M[F]_(Nh * Dh, Dout)),
    forall (b : 'rV[F]_Dout) (X : image F G Din),
    multihead pos (fun h k => (pos k - q == offset (f h))%:R) Wval Wout b X
    = convolution offset W b X q)
   <-> (forall t, \rank (W t) <= #|[pred h | f h == t]| * Dh)%N) /\
  (forall (a : 'I_Nh -> K -> F) (Wval : 'I_Nh -> 'M[F]_(Din, Dh)) (Wout : 'M[F]_(Nh * Dh, Dout))
     (b b' : 'rV[F]_Dout) (free : pred G), (forall t, free (q + offset t)) ->
   (forall X : image F G Din, (forall p, ~~ free p -> X p = 0) ->
    multihead pos a Wval Wout b' X = convolution offset W b X q) ->
   [/\ forall t,
       W t = \sum_h (\sum_(k | pos k == q + offset t) a h k) *: (Wval h *m block Wout h),
       (\rank (taps W) <= Nh)%N,
       (\rank (matricisation (fun (_ : 'I_1) t => W t)) <= Nh * Dh)%N
     & (\rank (matricisation (fun t (_ : 'I_1) => W t)) <= Nh * Dh)%N]).

(** ** T12 *)

(** With a positional encoding of dimension one, N + 1 heads of finite logits express every
    convolution of N taps exactly, on every padded grid and on every torus; on a window alone N heads
    do. Keys number T, a torus is a group G that is all keys, and a window alone has T = N. *)
Definition one_dimension_expresses_every_convolution : Prop :=
  forall (R : realFieldType) (e : R -> R) (G : zmodType) (Din Dout N H T : nat) (offset : 'I_N -> G)
    (W : 'I_N -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout),
  exponential e -> injective offset -> H = N.+1 \/ H = N /\ T = N ->
  exists (r : G -> 'rV[R]_1) (L : layer R Din 1 1 Dout Dout H),
  forall (K : finType) (pos : K -> G) (X : image R G Din) (q : G),
  #|K| = T -> injective pos -> sees_window pos offset q ->
  self_attention e r L pos X q = convolution offset W b X q.

(** A torus needs no padding: if every element of the group is a key, every query sees its
    window. *)
Definition one_dimension_expresses_every_convolution_torus : Prop :=
  forall (G : finZmodType) (N : nat) (offset : 'I_N -> G) (q : G),
  sees_window (fun k : G => k) offset q.

(** For distinct factors c_h of the heads and distinct numbers r_j of the displacements the matrix of
    exponentials is invertible. *)
Definition one_dimension_expresses_every_convolution_invertible : Prop :=
  forall (R : realType) (n : nat) (c r : 'I_n -> R), injective c -> injective r ->
  \matrix_(h, j) expR (c h * r j) \in unitmx.

(** On a grid N heads are too few, whatever the encoding and the head dimension: if a query sees its
    window and one key beside it, to which every head gives some weight, as finite logits do, and the
    layer is the convolution for all pixels, the N matrices of the taps are not independent. *)
Definition one_dimension_expresses_every_convolution_fewer : Prop :=
  forall (R : realFieldType) (G : zmodType) (Din Dh Dout N H : nat) (K : finType) (pos : K -> G)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout)) (a : 'I_H -> K -> R)
    (Wval : 'I_H -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(H * Dh, Dout)) (b : 'rV[R]_Dout) (q : G) (k : K),
  injective pos -> injective offset -> sees_window pos offset q ->
  (forall X, multihead pos a Wval Wout b X = convolution offset W b X q) ->
  (forall h, 0 < a h k) -> (forall t, q + offset t != pos k) -> (0 < N)%N -> (H <= N)%N ->
  ~~ row_free (\matrix_t mxvec (W t)).

(** ** T13 *)

(** Layers of N_1, N_2, up to N_L positional heads compute no kernel whose rank is above
    N_1 N_2 ⋯ N_L: at row i of the output, a query at q whose taps all find a key; what stands beside
    the keys is zero. *)
Definition depth_buys_heads_bound : Prop :=
  forall (F : fieldType) (G : zmodType) (Din Dout N K K' : nat) (pos : 'I_K -> G)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[F]_(Din, Dout)) (b : 'rV[F]_Dout) (q : G) (i : 'I_K')
    (f : 'M[F]_(K, Din) -> 'M[F]_(K', Dout)) (heads : seq nat),
  injective offset -> sees_window pos offset q -> positional_stack f heads ->
  (forall X : image F G Din, (forall p, ~~ on pos p -> X p = 0) ->
   row i (f (\matrix_k X (pos k))) = convolution offset W b X q) ->
  (\rank (taps W) <= \prod_(n <- heads) n)%N.

(** A residual, with a projection P or the identity, is one head more. *)
Definition depth_buys_heads_residual : Prop :=
  forall (R : comRingType) (K D K' D' D'' : nat) (f : 'M[R]_(K, D) -> 'M[R]_(K', D'))
    (heads : seq nat) (n : nat) (A : 'I_n -> 'M[R]_K') (V : 'I_n -> 'M[R]_(D', D''))
    (C : 'M[R]_(K', D'')) (P : 'M[R]_(D', D'')),
  positional_stack f heads ->
  positional_stack (fun X => f X *m P + (C + \sum_h A h *m f X *m V h)) (n.+1 :: heads).

(** Two layers: a convolution of m taps and then one of n, E channels wide between them, are the one
    whose taps are at the sums of their offsets and have the products of their matrices; and for every
    kernel of m x n taps there are such matrices exactly if E is at least the rank of its
    matricisation, which is at most D_in m and at most D_out n. *)
Definition depth_buys_heads_two_layers : Prop :=
  forall (F : fieldType) (G : zmodType) (Din E Dout m n : nat) (alpha : 'I_m -> G)
    (beta : 'I_n -> G) (W : 'I_m -> 'I_n -> 'M[F]_(Din, Dout)),
  (forall (U : 'I_m -> 'M[F]_(Din, E)) (Z : 'I_n -> 'M[F]_(E, Dout)) (b : 'rV[F]_Dout)
     (X : image F G Din) (q : G),
   convolution beta Z b (convolution alpha U 0 X) q
   = b + \sum_i \sum_j X (q + (alpha i + beta j)) *m (U i *m Z j)) /\
  ((exists (U : 'I_m -> 'M[F]_(Din, E)) (Z : 'I_n -> 'M[F]_(E, Dout)), forall i j, U i *m Z j = W i j)
   <-> (\rank (matricisation W) <= E)%N) /\
  (\rank (matricisation W) <= minn (m * Din) (n * Dout))%N.

(** ** T15 *)

(** Ties: a head that scores keys by content and kind alone, with a normaliser that treats all keys
    alike, does not see an exchange of keys of one kind. The kind is all that a position shows. *)
Definition ties_cannot_express_convolution_invariance : Prop :=
  forall (R : ringType) (K : finType) (C S T : Type) (D : nat) (kind : K -> C)
    (normalise : {ffun K -> S} -> {ffun K -> R}) (s : T -> C -> S) (v : T -> C -> 'rV[R]_D)
    (pi : K -> K) (X : K -> T),
  injective pi -> equivariant normalise -> (forall k, kind (pi k) = kind k) ->
  \sum_k normalise [ffun k => s (X (pi k)) (kind k)] k *: v (X (pi k)) (kind k)
  = \sum_k normalise [ffun k => s (X k) (kind k)] k *: v (X k) (kind k).

(** Depth: a layer of such heads commutes with a permutation that preserves the kinds of all pairs of
    query and key. So do maps of single tokens, and therefore networks of both. *)
Definition ties_cannot_express_convolution_depth : Prop :=
  forall (R : ringType) (K : finType) (C S T : Type) (D : nat) (kind : K -> K -> C)
    (normalise : {ffun K -> S} -> {ffun K -> R}) (s : T -> T -> C -> S) (v : T -> T -> C -> 'rV[R]_D)
    (pi : K -> K) (X : K -> T) (q : K),
  injective pi -> equivariant normalise -> (forall q k, kind (pi q) (pi k) = kind q k) ->
  let layer (X : K -> T) (q : K) :=
    \sum_k normalise [ffun k => s (X q) (X k) (kind q k)] k *: v (X q) (X k) (kind q k) in
  layer (fun k => X (pi k)) q = layer X (pi q).

(** The floor: a function that does not see the exchange errs, on some image with values in [0, 1], by
    at least a quarter of the total change of the taps. *)
Definition ties_cannot_express_convolution_floor : Prop :=
  forall (R : realFieldType) (K C : finType) (pi : K -> K) (W : K -> C -> R)
    (f : (K -> C -> R) -> R),
  injective pi -> (forall X Y : K -> C -> R, (forall k c, Y k c = X (pi k) c) -> f Y = f X) ->
  exists2 X : K -> C -> R, (forall k c, 0 <= X k c <= 1)
    & 4%:R^-1 * (\sum_k \sum_c `|W k c - W (pi k) c|) <= `|f X - \sum_k \sum_c W k c * X k c|.

(** ALiBi expresses the 1 x 1 kernels: with x = e^-m, m the slope, at most 1 - ((1 - x)/(1 + x))^d of a
    head's attention is off the query itself, on every grid. *)
Definition ties_cannot_express_convolution_alibi : Prop :=
  forall (R : realFieldType) (e : R -> R) (m : R) (d : nat) (K : finType) (pos : K -> position d)
    (t : K),
  exponential e -> 0 < m -> injective pos ->
  let x := e (- m) in
  1 - softmax e (fun k => - (m * (\sum_i `|(pos k - pos t)%R 0%R i|)%:R)) t
  <= 1 - ((1 - x) / (1 + x)) ^+ d.

(** Causal ALiBi continues the prefix periodically: what query q reads at lag j, a query whose prefix is
    m + 1 times as long reads at the lags j, j + (q + 1), j + 2 (q + 1), ..., in all. *)
Definition ties_cannot_express_convolution_causal : Prop :=
  forall (R : realFieldType) (x : R) (q m j : nat), 0 < x ->
  x ^+ j / (\sum_(i < q.+1) x ^+ i)
  = \sum_(l < m.+1) x ^+ (j + l * q.+1) / (\sum_(i < m.+1 * q.+1) x ^+ i).

(** If the weights of every head are inner products of m features, N_h heads shift an image only if N_h m
    is at least the number of pixels that the shift moves, and with fewer no layer errs less than a
    constant does. Over any normaliser; b is any bias for each query; the constant is 1/2, for images
    with values in [0, 1]. *)
Definition low_rank_attention_cannot_express_convolution : Prop :=
  forall (R : realFieldType) (T Nh m : nat) (moved : pred 'I_T) (shift : 'I_T -> 'I_T)
    (A : 'I_Nh -> 'M[R]_T) (phi : 'I_Nh -> 'M[R]_(T, m)) (psi : 'I_Nh -> 'M[R]_(m, T))
    (normaliser : 'I_Nh -> 'I_T -> R) (c : 'I_Nh -> R) (b : 'I_T -> R),
  {in moved &, injective shift} ->
  (forall h q k, A h q k = (phi h *m psi h) q k / normaliser h q) ->
  let layer := \sum_h c h *: A h in
  let image (X : 'cV[R]_T) := forall k, 0 <= X k 0 <= 1 in
  (layer = \matrix_(q, k) (moved q && (shift q == k))%:R -> (#|moved| <= Nh * m)%N) /\
  ((Nh * m < #|moved|)%N -> exists2 X, image X
     & exists2 q, moved q & 2%:R^-1 <= `|X (shift q) 0 - ((layer *m X) q 0 + b q)|) /\
  (forall X, image X -> forall q, `|X (shift q) 0 - 2%:R^-1| <= 2%:R^-1).

(** The count over any field, finite ones too. *)
Definition low_rank_attention_cannot_express_convolution_rank : Prop :=
  forall (F : fieldType) (T Nh m : nat) (moved : pred 'I_T) (shift : 'I_T -> 'I_T)
    (A : 'I_Nh -> 'M[F]_T) (phi : 'I_Nh -> 'M[F]_(T, m)) (psi : 'I_Nh -> 'M[F]_(m, T))
    (normaliser : 'I_Nh -> 'I_T -> F) (c : 'I_Nh -> F),
  {in moved &, injective shift} ->
  (forall h q k, A h q k = (phi h *m psi h) q k / normaliser h q) ->
  \sum_h c h *: A h = \matrix_(q, k) (moved q && (shift q == k))%:R ->
  (#|moved| <= Nh * m)%N.

(** ** T16 *)

(** Entmax of order a is one-hot exactly from the gap 1/(a − 1) in score on, ReLU from its height on
    and the hard maximum from every positive gap on, while softmax and sigmoid are so in the limit
    only. Entmax at its threshold tau; ReLU and sigmoid on centred scores, the sigmoid's height half
    the sharpness. *)
Definition normalisers_are_one_hot_from_their_gap : Prop :=
  forall (R : realFieldType) (e p : R -> R) (K : finType) (z : K -> R) (t : K) (a tau H : R),
  exponential e -> power p ->
  (1 < a -> \sum_k entmax p a tau (z k) = 1 ->
     (forall k, entmax p a tau (z k) = (k == t)%:R)
     <-> (forall k, k != t -> z k + (a - 1)^-1 <= z t)) /\
  (0 < H -> z t = 0 ->
     (forall k, relu H (z k) = (k == t)%:R) <-> (forall k, k != t -> z k <= - H)) /\
  ((forall k, top1 z k = (k == t)%:R) <-> (forall k, k != t -> z k < z t)) /\
  (forall k, softmax e z k != 0) /\
  (vanishing (fun alpha => 1 - softmax e (fun k => alpha * z k) t)
     <-> (forall k, k != t -> z k < z t)) /\
  (forall x, 0 < sigmoid e x < 1) /\
  (z t = 0 -> (forall k, k != t -> z k <= -1) ->
     forall k, vanishing (fun alpha => `|sigmoid e (alpha * z k + alpha / 2%:R) - (k == t)%:R|)).

(** Sparsemax is the order 2, with the gap 1. *)
Definition normalisers_are_one_hot_from_their_gap_sparsemax : Prop :=
  forall (R : realFieldType) (K : finType) (z : K -> R) (t : K) (tau : R),
  \sum_k Num.max 0 (z k - tau) = 1 ->
  (forall k, Num.max 0 (z k - tau) = (k == t)%:R) <-> (forall k, k != t -> z k + 1 <= z t).

(** A row has one entmax: two thresholds at which it sums to 1 give the same weights. *)
Definition normalisers_are_one_hot_from_their_gap_threshold : Prop :=
  forall (R : realFieldType) (p : R -> R) (K : finType) (z : K -> R) (a tau tau' : R),
  power p -> \sum_k entmax p a tau (z k) = 1 -> \sum_k entmax p a tau' (z k) = 1 ->
  forall k, entmax p a tau (z k) = entmax p a tau' (z k).

(** The powers of the reals, of positive exponents r = 1/(a - 1), are such as entmax takes. *)
Definition normalisers_are_one_hot_from_their_gap_power : Prop :=
  forall (R : realType) (r : R), 0 < r -> power (fun x => if 0 < x then expR (r * ln x) else 0).

(** Keys that tie share alike, whatever the normaliser, if it treats all keys alike. *)
Definition normalisers_are_one_hot_from_their_gap_ties : Prop :=
  forall (R : ringType) (K : finType) (S : Type) (normalise : {ffun K -> S} -> {ffun K -> R})
    (z : {ffun K -> S}) (i j : K),
  equivariant normalise -> z i = z j -> normalise z i = normalise z j.

(** A sigmoid of height H and sharpness alpha lacks sigmoid(-H) at the target and has
    sigmoid(H - alpha) at a nearest key. The larger is least at H = alpha / 2, and there alone; there
    it is less than e^(-alpha / 2). *)
Definition normalisers_are_one_hot_from_their_gap_height : Prop :=
  forall (R : realFieldType) (e : R -> R) (alpha H : R), exponential e ->
  let worst := Num.max (sigmoid e (- H)) (sigmoid e (H - alpha)) in
  sigmoid e (- (alpha / 2%:R)) <= worst /\
  (worst = sigmoid e (- (alpha / 2%:R)) <-> H = alpha / 2%:R) /\
  sigmoid e (- (alpha / 2%:R)) < e (- (alpha / 2%:R)).

(** ** T23 *)

(** Replacing layers of a network by others changes its output by a sum over the calls of these layers:
    the term of a call is what the rest of the original network makes of that call's error, on what the
    layer receives in the converted network. The layers c and a, the states and what is made of them
    are any functions; L is the number of calls. *)
Definition certificates_compose_by_telescoping : Prop :=
  forall (S A : Type) (B V : zmodType) (input : nat -> S -> A) (next : nat -> S -> B -> S)
    (c a : nat -> A -> B) (out : S -> V) (L : nat) (s : S),
  let converted l := run input next a 0 l s in
  let received l := input l (converted l) in
  let error l := a l (received l) - c l (received l) in
  let rest l y := out (run input next c l.+1 (L - l.+1) (next l (converted l) y)) in
  out (run input next a 0 L s) - out (run input next c 0 L s)
  = \sum_(l < L) (rest l (c l (received l) + error l) - rest l (c l (received l))).

(** The bound for chains: layers that are affine but for an error of at most B in the converted network
    and C in the original, and between them maps that bring numbers as far apart as phi' says. *)
Definition certificates_compose_by_telescoping_bound : Prop :=
  forall (R : realFieldType) (D E : nat -> nat) (W : forall l, 'M[R]_(D l, E l))
    (bias : forall l, 'rV[R]_(E l)) (phi phi' : forall l, 'rV[R]_(E l) -> 'rV[R]_(D l.+1))
    (x y : forall l, 'rV[R]_(D l)) (z w B C d : forall l, 'rV[R]_(E l)),
  let layer l (x : 'rV[R]_(D l)) := x *m W l + bias l in
  x 0%N = y 0%N -> (forall l, x l.+1 = phi l (z l)) -> (forall l, y l.+1 = phi l (w l)) ->
  (forall l j, `|layer l (x l) 0 j - z l 0 j| <= C l 0 j) ->
  (forall l j, `|w l 0 j - layer l (y l) 0 j| <= B l 0 j) ->
  (forall l (u u' t : 'rV[R]_(E l)), (forall j, `|u 0 j - u' 0 j| <= t 0 j) ->
   forall j, `|phi l u 0 j - phi l u' 0 j| <= phi' l t 0 j) ->
  d 0%N = B 0%N + C 0%N ->
  (forall l, d l.+1 = B l.+1 + phi' l (d l) *m map_mx Num.norm (W l.+1) + C l.+1) ->
  forall l j, `|w l 0 j - z l 0 j| <= d l 0 j.

(** ReLU is such a map, and phi' the identity. *)
Definition certificates_compose_by_telescoping_relu : Prop :=
  forall (R : realFieldType) (x y t : R),
  `|x - y| <= t -> `|Num.max 0 x - Num.max 0 y| <= t.

(** ** T24 *)

(** On a torus a layer whose scores are any function of displacement, query and key, with any
    normaliser that treats all keys alike, commutes with every shift. *)
Definition four_score_terms_are_four_filters_shifts : Prop :=
  forall (R : ringType) (G : finZmodType) (Din Dh Dout Nh : nat) (S : Type)
    (normalise : {ffun G -> S} -> {ffun G -> R}) (s : 'I_Nh -> 'rV[R]_Din -> 'rV[R]_Din -> G -> S)
    (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) (b : 'rV[R]_Dout)
    (X : image R G Din) (shift q : G),
  let layer (X : image R G Din) (q : G) :=
    multihead id (fun h => normalise [ffun k => s h (X q) (X k) (k - q)]) Wval Wout b X in
  equivariant normalise -> layer (fun k => X (k - shift)) q = layer X (q - shift).

(** So does the layer of the paper, with all four terms. *)
Definition four_score_terms_are_four_filters_four_terms : Prop :=
  forall (R : realFieldType) (e : R -> R) (G : finZmodType) (Din Dk Dp Dh Dout Nh : nat)
    (r : G -> 'rV[R]_Dp) (L : layer R Din Dk Dp Dh Dout Nh) (X : image R G Din) (shift q : G),
  self_attention e r L id (fun k => X (k - shift)) q = self_attention e r L id X (q - shift).

(** Without positions a layer commutes with every permutation of the pixels. *)
Definition four_score_terms_are_four_filters_permutations : Prop :=
  forall (R : ringType) (G : finZmodType) (Din Dh Dout Nh : nat) (S : Type)
    (normalise : {ffun G -> S} -> {ffun G -> R}) (s : 'I_Nh -> 'rV[R]_Din -> 'rV[R]_Din -> S)
    (Wval : 'I_Nh -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(Nh * Dh, Dout)) (b : 'rV[R]_Dout)
    (X : image R G Din) (pi : G -> G) (q : G),
  let layer (X : image R G Din) (q : G) :=
    multihead id (fun h => normalise [ffun k => s h (X q) (X k)]) Wval Wout b X in
  equivariant normalise -> injective pi -> layer (fun k => X (pi k)) q = layer X (pi q).

(** ** T25 *)

(** A softmax head that scores keys by displacement alone is a quotient of two convolutions:
    conv_g(X)/conv_g(1), the kernel e^g. The offsets are any that lead from the query to every key;
    beyond the keys the images X and 1 are zero. *)
Definition positional_heads_are_convolutions : Prop :=
  forall (R : realFieldType) (e : R -> R) (G : zmodType) (K : finType) (pos : K -> G) (Din N : nat)
    (offset : 'I_N -> G) (g : G -> R) (X : image R G Din) (q : G),
  injective pos -> injective offset -> (forall k, exists t, pos k = q + offset t) ->
  let conv_g (D : nat) (Y : image R G D) :=
    convolution offset (fun t => (e (g (offset t)))%:M) 0 (on_keys pos Y) q in
  attend pos (softmax e (fun k => g (pos k - q))) X
  = (conv_g 1%N (fun=> 1%:M) 0 0)^-1 *: conv_g Din X.

(** With a sink of score sigma, e^sigma is added to the denominator. *)
Definition positional_heads_are_convolutions_sink : Prop :=
  forall (R : realFieldType) (e : R -> R) (G : zmodType) (K : finType) (pos : K -> G) (Din N : nat)
    (offset : 'I_N -> G) (g : G -> R) (sigma : R) (X : image R G Din) (q : G),
  injective pos -> injective offset -> (forall k, exists t, pos k = q + offset t) ->
  let conv_g (D : nat) (Y : image R G D) :=
    convolution offset (fun t => (e (g (offset t)))%:M) 0 (on_keys pos Y) q in
  attend pos (softmax_with_sink e sigma (fun k => g (pos k - q))) X
  = (conv_g 1%N (fun=> 1%:M) 0 0 + e sigma)^-1 *: conv_g Din X.

(** On a torus, where every element of the group is a key, the head is a convolution. *)
Definition positional_heads_are_convolutions_torus : Prop :=
  forall (R : realFieldType) (e : R -> R) (G : finZmodType) (Din : nat) (g : G -> R)
    (X : image R G Din) (q : G),
  attend id (softmax e (fun k => g (k - q))) X = \sum_delta softmax e g delta *: X (q + delta).

(** Every positive kernel of sum 1 is that of some head. *)
Definition positional_heads_are_convolutions_kernels : Prop :=
  forall (R : realType) (G : finZmodType) (kappa : G -> R),
  (forall delta, 0 < kappa delta) -> \sum_delta kappa delta = 1 ->
  softmax expR (fun delta => ln (kappa delta)) =1 kappa.

(** ** T8, T7 and T9, in the real numbers of Coq's library *)
From Coq Require Import Reals ZArith.
From Flocq Require Import Core BinarySingleNaN.
From Formal Require Import setting_floats setting_ieee.
Open Scope R_scope.

(** Computed softmax weights are exactly one-hot once the gap in score exceeds a finite threshold. *)
Definition saturated_softmax_is_one_hot : Prop :=
  one_hot_from binary32 (10398 / 100) /\ one_hot_from binary64 (74514 / 100) /\
  one_hot_after_cast binary16 (1733 / 100) (2 ^ 11) /\
  one_hot_after_cast bfloat16 (9289 / 100) (2 ^ 14).

(** A one-hot head copies its pixel, in every format and every order. *)
Definition saturated_softmax_is_one_hot_copies : Prop :=
  forall (F : precision) (flush : bool) (w X : nat -> R) (t : nat) (order : tree nat),
  (forall k, w k = one_hot t k) -> stored F flush (X t) -> count (Nat.eqb t) order = 1%nat ->
  sum F flush (fun k => fl F flush (w k * X k)) order = X t.

(** Integers whose sizes add up to at most 2^prec are summed exactly, in every order. *)
Definition saturated_softmax_is_one_hot_integers : Prop :=
  forall (F : precision) (flush : bool) (A : Type) (z : A -> Z) (order : tree A),
  (1 < prec F)%Z -> (emin F + prec F <= 1)%Z -> (size z order <= 2 ^ prec F)%Z ->
  sum F flush (fun a => IZR (z a)) order = IZR (exact z order).

(** The whole layer on integers: the sum over heads h and channels c of copied pixel times matrix
    entry, and the bias, in any order, is the convolution's. *)
Definition saturated_softmax_is_one_hot_layer : Prop :=
  forall (F : precision) (gap : R) (flush reciprocal : bool) (ex : R -> R) (alpha : R)
    (t : nat -> nat) (s : nat -> nat -> R) (top : nat -> R) (order : nat -> tree nat)
    (X W : nat -> nat -> Z) (b : Z) (terms : tree (option (nat * nat))),
  F = binary32 /\ gap = 10398 / 100 \/ F = binary64 /\ gap = 74514 / 100 ->
  gap <= alpha -> admissible F ex ->
  (forall h, separated F flush alpha (t h) (s h)) -> (forall h, largest (s h) (top h)) ->
  (forall h, count (Nat.eqb (t h)) (order h) = 1%nat) ->
  (forall k c, (Z.abs (X k c) <= 2 ^ prec F)%Z) ->
  let weight h k := computed_softmax F flush reciprocal ex (order h) (s h) (top h) k in
  let head h c := sum F flush (fun k => fl F flush (weight h k * IZR (X k c))) (order h) in
  let term a := match a with
    Some (h, c) => fl F flush (head h c * IZR (W h c)) | None => IZR b end in
  let exact_term a := match a with Some (h, c) => (X (t h) c * W h c)%Z | None => b end in
  (size exact_term terms <= 2 ^ prec F)%Z -> sum F flush term terms = IZR (exact exact_term terms).

(** The same in the half formats, whose weights are cast from binary32 and whose sums run in it: before
    the output is cast it is the convolution's, so that the layer is the correctly rounded
    convolution. *)
Definition saturated_softmax_is_one_hot_half_layer : Prop :=
  forall (H : precision) (gap : R) (keys : Z) (flush reciprocal : bool) (ex : R -> R) (alpha : R)
    (t : nat -> nat) (s : nat -> nat -> R) (top : nat -> R) (order : nat -> tree nat)
    (X W : nat -> nat -> Z) (b : Z) (terms : tree (option (nat * nat))),
  H = binary16 /\ gap = 1733 / 100 /\ keys = (2 ^ 11)%Z \/
  H = bfloat16 /\ gap = 9289 / 100 /\ keys = (2 ^ 14)%Z ->
  gap <= alpha -> admissible binary32 ex ->
  (forall h, separated binary32 flush alpha (t h) (s h)) -> (forall h, largest (s h) (top h)) ->
  (forall h, count (Nat.eqb (t h)) (order h) = 1%nat) ->
  (forall h, (Z.of_nat (leaves (order h)) <= keys)%Z) ->
  (forall k c, (Z.abs (X k c) <= 2 ^ 24)%Z) ->
  let weight h k :=
    fl H flush (computed_softmax binary32 flush reciprocal ex (order h) (s h) (top h) k) in
  let head h c :=
    sum binary32 flush (fun k => fl binary32 flush (weight h k * IZR (X k c))) (order h) in
  let term a := match a with
    Some (h, c) => fl binary32 flush (head h c * IZR (W h c)) | None => IZR b end in
  let exact_term a := match a with Some (h, c) => (X (t h) c * W h c)%Z | None => b end in
  (size exact_term terms <= 2 ^ 24)%Z ->
  sum binary32 flush term terms = IZR (exact exact_term terms).

(** 46 is not enough in binary32: a neighbour of that gap keeps a weight, with the correctly rounded
    exponential, flushed or not. *)
Definition saturated_softmax_is_one_hot_not_from_46 : Prop :=
  forall (flush reciprocal : bool) (s : nat -> R), s 0%nat = 0 -> s 1%nat = - (46) ->
  computed_softmax binary32 flush reciprocal (fun x => nearest binary32 (Rtrigo_def.exp x))
    (Node (Leaf 0%nat) (Leaf 1%nat)) s 0 1 <> 0.

(** An admissible exponential exists: the correctly rounded one. *)
Definition saturated_softmax_is_one_hot_exponential : Prop :=
  forall F : precision, (1 < prec F)%Z -> (emin F + prec F <= 1)%Z ->
  admissible F (fun x => nearest F (Rtrigo_def.exp x)).

(** Separated scores exist: correctly rounded ones, the target's among them the largest. *)
Definition saturated_softmax_is_one_hot_scores : Prop :=
  forall (F : precision) (flush : bool) (alpha : R) (t : nat) (m : nat -> Z),
  (1 < prec F)%Z -> (emin F + prec F <= 1)%Z -> 1 <= alpha -> m t = 0%Z ->
  (forall k, k <> t -> (1 <= m k)%Z) ->
  separated F flush alpha t (fun k => - fl F flush (alpha * IZR (m k))) /\
  largest (fun k => - fl F flush (alpha * IZR (m k))) 0.

(** ** T7 *)

(** A sum of numbers of a format, in any order of its n terms, errs by at most (1 + u)^(n - 1) - 1
    times the sum of their sizes: no addition underflows. *)
Definition layer_error_is_certified_sums : Prop :=
  forall (F : precision) (A : Type) (z : A -> R) (order : tree A),
  (1 < prec F)%Z -> (forall a, format F (z a)) ->
  Rabs (sum F false z order - total z order)
  <= ((1 + unit_roundoff F) ^ (leaves order - 1) - 1) * total (fun a => Rabs (z a)) order.

(** A sum of products, in any order: relative to the sum of their sizes, and what underflow takes of
    each. *)
Definition layer_error_is_certified_products : Prop :=
  forall (F : precision) (A : Type) (a b : A -> R) (order : tree A),
  (1 < prec F)%Z ->
  let gamma := growth (unit_roundoff F) (leaves order) in
  Rabs (sum F false (fun k => fl F false (a k * b k)) order - total (fun k => a k * b k) order)
  <= gamma * total (fun k => Rabs (a k * b k)) order
     + (1 + gamma) / 2 * (INR (leaves order) * smallest F).

(** Exponentials: of a score x <= 0 that is computed as y, within two roundings, and with an
    exponential that is right up to 20 units in the last place and the smallest normal number. *)
Definition layer_error_is_certified_exponential : Prop :=
  forall (F : precision) (ex : R -> R) (x y : R),
  F = binary32 \/ F = binary64 ->
  let u := unit_roundoff F in
  let nu := smallest_normal F in
  let S := 1 - Rpower.ln nu in
  x <= 0 -> Rabs (y - x) <= 2 * u * Rabs x -> 0 <= ex y ->
  Rabs (ex y - Rtrigo_def.exp y) <= 40 * u * Rtrigo_def.exp y + nu ->
  Rabs (ex y - Rtrigo_def.exp x)
  <= (40 + 2 * S) * u * (1 + / 2 ^ 12) * Rtrigo_def.exp x + 2 * nu.

(** One softmax with underflow, gradual or flushed, in any order, by division or by the reciprocal,
    with or without a cast: if computed exponentials err by at most tau E + 2 nu, computed weights err
    by at most mu A + 2 nu (1 + rho) + eta + eta_w. *)
Definition layer_error_is_certified_softmax : Prop :=
  forall (F : precision) (H : option precision) (flush reciprocal : bool) (ex : R -> R)
    (order : tree nat) (s E : nat -> R) (top tau nu : R),
  let T := INR (leaves order) in
  let u := unit_roundoff F in
  let z k := ex (fl F flush (s k - top)) in
  let A k := E k / total E order in
  let beta := tau + T * (2 * nu) + growth u (leaves order) in
  let rho := ((2 * u + cast_roundoff H) * (1 + 2 * u) + beta) / (1 - beta) in
  let mu := (1 + tau) * (1 + rho) - 1 in
  (1 < prec F)%Z -> castable H -> 0 <= tau -> 0 <= nu -> beta < 1 ->
  4 * T * smallest_normal F <= 1 ->
  (forall k, 0 <= E k <= 1) -> 1 <= total E order ->
  (forall k, stored F flush (z k) /\ 0 <= z k) ->
  (forall k, Rabs (z k - E k) <= tau * E k + 2 * nu) ->
  forall k, Rabs (cast H flush (computed_softmax F flush reciprocal ex order s top k) - A k)
  <= mu * A k + (2 * nu * (1 + rho) + underflow F flush + cast_underflow H flush).

(** What a head sees, relative to what it sees of the sizes: weights that err by at most mu A + z, and
    any order of the sum. *)
Definition layer_error_is_certified_head : Prop :=
  forall (F : precision) (K : Type) (A w X : K -> R) (order : tree K) (mu z top : R),
  (1 < prec F)%Z -> 0 <= mu -> 0 <= z -> (forall k, 0 <= A k) ->
  (forall k, Rabs (w k - A k) <= mu * A k + z) -> (forall k, Rabs (X k) <= top) ->
  let gamma := growth (unit_roundoff F) (leaves order) in
  Rabs (sum F false (fun k => fl F false (w k * X k)) order - total (fun k => A k * X k) order)
  <= ((1 + mu) * (1 + gamma) - 1) * total (fun k => A k * Rabs (X k)) order
     + (1 + gamma) * (INR (leaves order) * z) * top
     + (1 + gamma) / 2 * (INR (leaves order) * smallest F).

(** What a head sees, relative to the off-limit mass: if the exponentials of all keys but the target
    sum to at most lambda, the exact ones and the computed ones, a computed head differs from a real
    one by at most 26 (1 + gamma) lambda times the largest pixel. *)
Definition layer_error_is_certified_nearly_one_hot : Prop :=
  forall (F : precision) (H : option precision) (reciprocal : bool) (ex : R -> R)
    (order : tree nat) (s E X : nat -> R) (t : nat) (top lambda largest_pixel : R),
  let z k := ex (fl F false (s k - top)) in
  let off (f : nat -> R) k := if Nat.eqb t k then 0 else f k in
  let weight k := cast H false (computed_softmax F false reciprocal ex order s top k) in
  (1 < prec F)%Z -> (emin F + prec F <= 1)%Z -> castable H ->
  match H with Some G => format G 1 | None => True end ->
  count (Nat.eqb t) order = 1%nat -> z t = 1 -> E t = 1 ->
  (forall k, format F (z k) /\ 0 <= z k) -> (forall k, 0 <= E k) ->
  total (off z) order <= lambda -> total (off E) order <= lambda ->
  (forall k, format F (X k)) -> (forall k, Rabs (X k) <= largest_pixel) ->
  Rabs (sum F false (fun k => fl F false (weight k * X k)) order
        - total (fun k => E k / total E order * X k) order)
  <= 26 * (1 + growth (unit_roundoff F) (leaves order)) * lambda * largest_pixel.

(** ** T9 *)

(** Dense attention spreads a non-finite pixel to every query, even with exactly one-hot weights. In
    any format and rounding mode, any order of the sums, and whatever the weights, matrices and
    bias. *)
Definition dense_attention_spreads_non_finite_pixels : Prop :=
  forall (prec emax : Z) (hp : Prec_gt_0 prec) (he : Prec_lt_emax prec emax) (m : mode)
    (w X W : nat -> nat -> binary_float prec emax) (b : binary_float prec emax)
    (keys : nat -> tree nat) (terms : tree (option (nat * nat))) (h c k : nat),
  is_finite (X k c) = false -> leaf k (keys h) -> leaf (Some (h, c)) terms ->
  is_finite (dense_output prec emax hp he m w X W b keys terms) = false.

(** If some head gives that pixel the weight zero, of either sign, the output is NaN. *)
Definition dense_attention_spreads_non_finite_pixels_nan : Prop :=
  forall (prec emax : Z) (hp : Prec_gt_0 prec) (he : Prec_lt_emax prec emax) (m : mode)
    (w X W : nat -> nat -> binary_float prec emax) (b : binary_float prec emax)
    (keys : nat -> tree nat) (terms : tree (option (nat * nat))) (h c k : nat) (sign : bool),
  is_finite (X k c) = false -> w h k = B754_zero sign -> leaf k (keys h) ->
  leaf (Some (h, c)) terms ->
  is_nan (dense_output prec emax hp he m w X W b keys terms) = true.

(** If all pixels and matrices are finite and weights exactly one-hot, it does not: in the same order of
    the sum over heads and channels, dense attention is the sum over the pixels that the heads look at,
    up to the sign of zero. *)
Definition dense_attention_spreads_non_finite_pixels_finite : Prop :=
  forall (prec emax : Z) (hp : Prec_gt_0 prec) (he : Prec_lt_emax prec emax) (m : mode)
    (w X W : nat -> nat -> binary_float prec emax) (b : binary_float prec emax)
    (keys : nat -> tree nat) (terms : tree (option (nat * nat))) (t : nat -> nat),
  (forall k c, is_finite (X k c) = true) -> (forall h c, is_finite (W h c) = true) ->
  (forall h, ieee_one_hot hp he (t h) (w h)) -> (forall h, count (Nat.eqb (t h)) (keys h) = 1%nat) ->
  let gathered a := match a with Some (h, c) => Bmult m (X (t h) c) (W h c) | None => b end in
  same (dense_output prec emax hp he m w X W b keys terms)
    (ieee_sum prec emax hp he m gathered terms).
