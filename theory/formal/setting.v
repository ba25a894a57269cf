(** * The setting

    What a referee reads first: these definitions, then [statements.v]. The rest is proofs.

    For readers who do not know Coq. ['I_n] is the set of n indices 0, ..., n - 1; ['rV[R]_n] the
    rows of n entries in R, ['M[R]_(m, n)] the m x n matrices, [A *m B] their product, [A^T] the
    transpose; [c *: v] multiplies a row by a number; [\sum_k] runs through all k of a finite
    type ([finType]). [R : ringType] is a ring that need not commute, [R : realFieldType] an ordered
    field, [G : zmodType] an abelian group. [%:R] turns a natural number, and a truth value into 0
    or 1. Between [Section] and [End], [Variables] are quantified over in all that follows. *)
From mathcomp Require Import all_ssreflect all_algebra.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import GRing.Theory.
Local Open Scope ring_scope.

(** ** Positions and images

    Positions are the elements of an abelian group G: of Z^d, or of a torus. *)
Notation position d := 'rV[int]_d.

(** An image has a row of channels at every position; what pads it is part of it. *)
Definition image (R : ringType) (G : zmodType) (D : nat) := G -> 'rV[R]_D.

(** A convolution has N taps, an offset and a matrix each, and a bias:
    Y_q = b + sum over the taps of X_(q + offset) W. *)
Definition convolution (R : ringType) (G : zmodType) (Din Dout N : nat)
    (offset : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout)) (b : 'rV[R]_Dout)
    (X : image R G Din) (q : G) : 'rV[R]_Dout :=
  b + \sum_t X (q + offset t) *m W t.

(** The taps as rows of one matrix, whose rank counts heads. *)
Definition taps (R : ringType) (Din Dout N : nat) (W : 'I_N -> 'M[R]_(Din, Dout)) :
    'M[R]_(N, Din * Dout) := \matrix_t mxvec (W t).

(** The taps W_ij of two layers as one matrix, of rows (i, c) and columns (j, o). *)
Definition matricisation (R : ringType) (Din Dout m n : nat) (W : 'I_m -> 'I_n -> 'M[R]_(Din, Dout)) :
    'M[R]_(m * Din, n * Dout) :=
  \matrix_(s, t) mxvec (\matrix_(i, c) mxvec (\matrix_(j, o) W i j c o) 0 t) 0 s.

(** ** Attention

    Keys are finitely many, key k at the position [pos k]. Head h gives key k the weight [a h k].
    Each head sees a weighted sum of pixels and multiplies it by its value matrix; the heads stand
    side by side in one row ([mxvec] writes a matrix row after row), which the output matrix
    multiplies. *)
Section Attention.
Variables (R : ringType) (G : zmodType) (Din Dh Dout Nh : nat) (K : finType) (pos : K -> G).

Definition attend (a : K -> R) (X : image R G Din) : 'rV[R]_Din := \sum_k a k *: X (pos k).

(** Weights of the query at q that depend on the displacement alone: g, divided by its sum, which is the
    softmax of ln g where g is positive. *)
Definition positional_weights (F : fieldType) (g : G -> F) (q : G) (k : K) : F :=
  g (pos k - q) / \sum_j g (pos j - q).

Definition multihead (a : 'I_Nh -> K -> R) (Wval : 'I_Nh -> 'M[R]_(Din, Dh))
    (Wout : 'M[R]_(Nh * Dh, Dout)) (b : 'rV[R]_Dout) (X : image R G Din) : 'rV[R]_Dout :=
  b + mxvec (\matrix_h (attend (a h) X *m Wval h)) *m Wout.

(** The D_h rows of the output matrix that belong to head h. *)
Definition block (Wout : 'M[R]_(Nh * Dh, Dout)) (h : 'I_Nh) : 'M[R]_(Dh, Dout) :=
  \matrix_(i, j) Wout (mxvec_index h i) j.

(** The query at q sees its window: every tap finds a key. *)
Definition sees_window (N : nat) (offset : 'I_N -> G) (q : G) : Prop :=
  forall t, exists k, pos k = q + offset t.

(** Whether a key stands at position p, and the image that is zero where none does. *)
Definition on (p : G) : bool := [exists k, pos k == p].
Definition on_keys (D : nat) (X : image R G D) : image R G D := fun p => if on p then X p else 0.
End Attention.

(** With g groups, channels are numbered group after group, as [mxvec] does, and [row a (vec_mx x)] are
    those of group a. The block of a matrix that group a meets. *)
Definition diagonal_block (R : ringType) (g Din Dout : nat) (W : 'M[R]_(g * Din, g * Dout))
    (a : 'I_g) : 'M[R]_(Din, Dout) :=
  \matrix_(c, m) W (mxvec_index a c) (mxvec_index a m).

(** Row t of a soft padding is what attention sees at position t. A normaliser is any function from
    rows of scores, numbers or not, to rows of weights. (A sink is in it: its value is zero and its
    score constant, so that it only changes the function of the row.) *)
Definition soft_padding (R : ringType) (G : zmodType) (Din : nat) (K : finType) (pos : K -> G)
    (S : Type) (normalise : {ffun K -> S} -> {ffun K -> R}) (score : G -> S)
    (X : image R G Din) : image R G Din :=
  fun t => attend pos (normalise [ffun k => score (pos k - t)]) X.

(** A normaliser that treats all keys alike. *)
Definition equivariant (R : ringType) (K : finType) (S : Type)
    (normalise : {ffun K -> S} -> {ffun K -> R}) : Prop :=
  forall (z : {ffun K -> S}) (pi : K -> K), injective pi -> forall k,
  normalise [ffun k => z (pi k)] k = normalise z (pi k).

(** ** Softmax, and the layer of the paper

    Of the exponential no more is used than these two properties, which hold in any ordered field
    that has such a function. [reals.v] shows that the exponential of the reals is one. *)
Definition exponential (R : realFieldType) (e : R -> R) : Prop :=
  {morph e : x y / x + y >-> x * y} /\ (forall x, 0 <= x -> 1 + x <= e x).

Definition softmax (R : realFieldType) (e : R -> R) (K : finType) (s : K -> R) (k : K) : R :=
  e (s k) / \sum_j e (s j).

(** Softmax where some scores are minus infinity, whose exponential is 0. *)
Definition masked_softmax (R : realFieldType) (e : R -> R) (K : finType) (s : K -> option R)
    (k : K) : R :=
  let ex z := if z is Some x then e x else 0 in ex (s k) / \sum_j ex (s j).

(** Softmax with a sink, one more key of score c and value zero. *)
Definition softmax_with_sink (R : realFieldType) (e : R -> R) (K : finType) (c : R)
    (s : K -> R) (k : K) : R :=
  e (s k) / (\sum_j e (s j) + e c).

(** Other normalisers. Of the power x^(1/(a - 1)) of entmax of order a no more is used than this; the
    weights are those of the threshold tau at which they sum to 1. *)
Definition power (R : realFieldType) (p : R -> R) : Prop :=
  [/\ p 0 = 0, p 1 = 1 & forall x y, 0 <= x -> x < y -> p x < p y].
Definition entmax (R : realFieldType) (p : R -> R) (a tau z : R) : R :=
  p (Num.max 0 ((a - 1) * z - tau)).
Definition relu (R : realFieldType) (H z : R) : R := Num.max 0 (1 + z / H).
Definition sigmoid (R : realFieldType) (e : R -> R) (x : R) : R := 1 / (1 + e (- x)).

(** The hard maximum: 1 over the number of keys of the highest score. *)
Definition highest (R : realFieldType) (K : finType) (z : K -> R) (k : K) : bool :=
  [forall j, z j <= z k].
Definition top1 (R : realFieldType) (K : finType) (z : K -> R) (k : K) : R :=
  (highest z k)%:R / #|highest z|%:R.

(** The parameters of arXiv:1911.03584: D_k, D_p and D_h are the dimensions of a head's keys, of the
    encoding and of a head. *)
Record layer (R : ringType) (Din Dk Dp Dh Dout Nh : nat) := Layer {
  Wqry : 'I_Nh -> 'M[R]_(Din, Dk);
  Wkey : 'I_Nh -> 'M[R]_(Din, Dk);
  Wpos : 'I_Nh -> 'M[R]_(Dp, Dk);
  u : 'I_Nh -> 'rV[R]_Dk;
  v : 'I_Nh -> 'rV[R]_Dk;
  Wval : 'I_Nh -> 'M[R]_(Din, Dh);
  Wout : 'M[R]_(Nh * Dh, Dout);
  bout : 'rV[R]_Dout }.

Section Layer.
Variables (R : realFieldType) (e : R -> R) (G : zmodType) (Din Dk Dp Dh Dout Nh : nat).
Variables (r : G -> 'rV[R]_Dp) (L : layer R Din Dk Dp Dh Dout Nh).

(** The four terms of the score of query q and key k, with the encoding r of displacements. *)
Definition score (X : image R G Din) (h : 'I_Nh) (q k : G) : R :=
  (X q *m Wqry L h *m (X k *m Wkey L h)^T + X q *m Wqry L h *m (r (k - q) *m Wpos L h)^T
   + u L h *m (X k *m Wkey L h)^T + v L h *m (r (k - q) *m Wpos L h)^T) 0 0.

Definition self_attention (K : finType) (pos : K -> G) (X : image R G Din) (q : G) : 'rV[R]_Dout :=
  multihead pos (fun h => softmax e (fun k => score X h q (pos k))) (Wval L) (Wout L) (bout L) X.
End Layer.

(** ** Networks

    A network is what its calls are given and what is made of what they return: the state s holds all
    values made before call l, which receives [input l s]; of these and of what it returns [next l]
    makes the state before the following call. [run f l n s] makes n calls from call l on, of the
    layers f. *)
Section Network.
Variables (S A B : Type) (input : nat -> S -> A) (next : nat -> S -> B -> S).

Definition run (f : nat -> A -> B) (l n : nat) (s : S) : S :=
  foldl (fun s l => next l s (f l (input l s))) s (iota l n).
End Network.

(** A stack of layers of heads whose weights, queries by keys, depend on positions alone: as a map of
    images, which are matrices of pixels by channels, with the number of heads of each layer, the last
    first. *)
Inductive positional_stack (R : ringType) (K D : nat) :
    forall K' D', ('M[R]_(K, D) -> 'M[R]_(K', D')) -> seq nat -> Prop :=
| no_layer f : (forall X, f X = X) -> positional_stack f [::]
| one_more K' D' K'' D'' heads (f : 'M[R]_(K, D) -> 'M[R]_(K', D')) n (A : 'I_n -> 'M[R]_(K'', K'))
    (V : 'I_n -> 'M[R]_(D', D'')) (C : 'M[R]_(K'', D'')) g :
  positional_stack f heads -> (forall X, g X = C + \sum_h A h *m f X *m V h) ->
  positional_stack g (n :: heads).

(** The sum of x^(n^2) over the odd numbers n = 1, 3, ..., 2N - 1. *)
Definition odd_theta (R : realFieldType) (x : R) (N : nat) : R := \sum_(m < N) x ^+ (m.*2.+1 ^ 2).

(** f, which is nowhere negative, tends to 0 as the sharpness alpha grows. *)
Definition vanishing (R : realFieldType) (f : R -> R) : Prop :=
  forall eps, 0 < eps -> exists alpha0, forall alpha, alpha0 <= alpha -> f alpha <= eps.

(** ** Quadratic scores *)
Definition sqnorm d (p : position d) : nat := (\sum_i `|p 0%R i| ^ 2)%N.

Section Quadratic.
Variables (R : realFieldType) (d : nat).

(** The encoding r_p = (|p|^2, p), of dimension d + 1, and the vector v = -alpha (1, -2 Delta) by
    which a head asks for the shift Delta. *)
Definition encoding (p : position d) : 'rV[R]_(1 + d) :=
  row_mx ((sqnorm p)%:R)%:M (map_mx intr p).
Definition request (alpha : R) (Delta : position d) : 'rV[R]_(1 + d) :=
  - alpha *: row_mx 1%:M (- 2%:R *: map_mx intr Delta).

(** The weights of such a head at query q. *)
Definition quadratic_weights (e : R -> R) (alpha : R) (K : finType) (pos : K -> position d)
    (q Delta : position d) : K -> R :=
  softmax e (fun k => (request alpha Delta *m (encoding (pos k - q))^T) 0 0).

(** The same with a sharpness for each axis: r_p = (p_1^2, ..., p_d^2, p), of dimension 2d. *)
Definition diagonal_encoding (p : position d) : 'rV[R]_(d + d) :=
  row_mx (\row_i (p 0 i)%:~R ^+ 2) (map_mx intr p).
Definition diagonal_request (alpha : 'I_d -> R) (Delta : position d) : 'rV[R]_(d + d) :=
  row_mx (\row_i - alpha i) (\row_i (2%:R * alpha i * (Delta 0 i)%:~R)).
Definition diagonal_weights (e : R -> R) (alpha : 'I_d -> R) (K : finType) (pos : K -> position d)
    (q Delta : position d) : K -> R :=
  softmax e (fun k => (diagonal_request alpha Delta *m (diagonal_encoding (pos k - q))^T) 0 0).

(** The layer whose head h asks for the shift [shift h]: no content, D_k = D_p = d + 1. *)
Definition quadratic_layer (Din Dh Dout N : nat) (alpha : R) (shift : 'I_N -> position d)
    (Wval : 'I_N -> 'M[R]_(Din, Dh)) (Wout : 'M[R]_(N * Dh, Dout)) (b : 'rV[R]_Dout) :
    layer R Din (1 + d) (1 + d) Dh Dout N :=
  Layer (fun=> 0) (fun=> 0) (fun=> 1%:M) (fun=> 0) (fun h => request alpha (shift h)) Wval Wout b.

(** No key is further than N from position t on any axis. *)
Definition within (K : finType) (pos : K -> position d) (t : position d) (N : nat) : Prop :=
  forall k i, (`|(pos k - t)%R 0%R i| <= N)%N.
End Quadratic.

(** The point of the box from [lower] to [upper] that is nearest to t, axis by axis. *)
Definition clamp (d : nat) (lower upper t : position d) : position d :=
  \row_i Num.min (Num.max (t 0 i) (lower 0 i)) (upper 0 i).

(** The point of index p on a lattice with an origin and a spacing for each axis. *)
Definition lattice_point (d : nat) (origin : position d) (spacing : 'I_d -> nat) (p : position d) :
    position d := \row_i (origin 0 i + (spacing i)%:Z * p 0 i).

(** The cells of a cube of side m, as positions with coordinates 0, ..., m - 1. *)
Definition cell (d m : nat) (k : {ffun 'I_d -> 'I_m}) : position d := \row_i (k i)%:Z.

(** Jacobi's theta function cut at N: the sum of x^(n^2) over the integers n with |n| <= N. *)
Definition theta (R : realFieldType) (x : R) (N : nat) : R :=
  1 + 2%:R * \sum_(n < N) x ^+ (n.+1 ^ 2).
