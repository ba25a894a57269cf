(** * The setting, in floating point

    Real numbers are those of Coq's library, formats and rounding those of Flocq. This model
    has no infinity, no NaN and no overflow; that of [setting_ieee.v] has. *)
From Coq Require Import Reals ZArith Bool.
From Flocq Require Import Core.
Open Scope R_scope.

(** A format holds the multiples of 2^emin of at most prec significant bits. *)
Record precision := Precision { emin : Z; prec : Z }.
Definition binary16 := Precision (-24) 11.
Definition bfloat16 := Precision (-133) 8.
Definition binary32 := Precision (-149) 24.
Definition binary64 := Precision (-1074) 53.

Definition exponents (F : precision) : Z -> Z := FLT_exp (emin F) (prec F).
Definition format (F : precision) (x : R) : Prop := generic_format radix2 (exponents F) x.

(** Unit roundoff u, smallest subnormal and smallest normal number. *)
Definition unit_roundoff (F : precision) : R := bpow radix2 (- prec F).
Definition smallest (F : precision) : R := bpow radix2 (emin F).
Definition smallest_normal (F : precision) : R := bpow radix2 (emin F + prec F - 1).

(** Rounding to nearest, ties to even; a machine that flushes returns 0 for a subnormal result. *)
Definition nearest (F : precision) (x : R) : R := round radix2 (exponents F) ZnearestE x.
Definition fl (F : precision) (flush : bool) (x : R) : R :=
  if flush && Rlt_bool (Rabs (nearest F x)) (smallest_normal F) then 0 else nearest F x.

(** A number that such a machine can hold. *)
Definition stored (F : precision) (flush : bool) (x : R) : Prop :=
  format F x /\ (flush = true -> x = 0 \/ smallest_normal F <= Rabs x).

(** A sum in any order is a binary tree, in which every addition is rounded. *)
Inductive tree (A : Type) := Leaf (a : A) | Node (left right : tree A).
Arguments Leaf {A}. Arguments Node {A}.

Fixpoint sum {A} (F : precision) (flush : bool) (z : A -> R) (order : tree A) : R :=
  match order with
  | Leaf a => z a
  | Node l r => fl F flush (sum F flush z l + sum F flush z r)
  end.

(** The exact sum. *)
Fixpoint total {A} (z : A -> R) (order : tree A) : R :=
  match order with Leaf a => z a | Node l r => total z l + total z r end.

(** How many of its leaves have a property, and how many there are. *)
Fixpoint count {A} (P : A -> bool) (order : tree A) : nat :=
  match order with Leaf a => if P a then 1 else 0 | Node l r => count P l + count P r end.
Definition leaves {A} (order : tree A) : nat := count (fun _ => true) order.

(** The sum of integers, and that of their absolute values. *)
Fixpoint exact {A} (z : A -> Z) (order : tree A) : Z :=
  match order with Leaf a => z a | Node l r => exact z l + exact z r end.
Definition size {A} (z : A -> Z) (order : tree A) : Z := exact (fun a => Z.abs (z a)) order.

(** What is asked of the computed exponential: a number of the format, 1 at 0, and below 0 at most
    20 units in the last place, and half the smallest number, above the true one. *)
Definition admissible (F : precision) (ex : R -> R) : Prop :=
  (forall x, format F (ex x)) /\ (forall x, 0 <= ex x) /\ ex 0 = 1 /\
  forall x, x < 0 -> ex x <= (1 + 40 * unit_roundoff F) * exp x + smallest F / 2.

(** Softmax subtracts the largest score, takes exponentials, sums them in the order given, and
    divides each by the sum, or multiplies it by the rounded reciprocal. *)
Definition computed_softmax (F : precision) (flush reciprocal : bool) (ex : R -> R)
    (order : tree nat) (s : nat -> R) (top : R) (k : nat) : R :=
  let z j := ex (fl F flush (s j - top)) in
  let total := sum F flush z order in
  if reciprocal then fl F flush (z k * fl F flush (/ total)) else fl F flush (z k / total).

(** Computed scores: the target's is 0, the largest; that of another key is at most -(1 - 2u) alpha
    times a number m_k >= 1, with quadratic scores the squared distance from the target. *)
Definition separated (F : precision) (flush : bool) (alpha : R) (t : nat) (s : nat -> R) : Prop :=
  (forall k, stored F flush (s k)) /\ s t = 0 /\
  forall k, k <> t -> exists m, 1 <= m /\ s k <= - ((1 - 2 * unit_roundoff F) * (alpha * m)).
Definition largest (s : nat -> R) (top : R) : Prop :=
  (exists k, top = s k) /\ forall k, s k <= top.

Definition one_hot (t k : nat) : R := if Nat.eqb t k then 1 else 0.

(** The weights are one-hot from this gap on, in whichever order and with whichever exponential. *)
Definition one_hot_from (F : precision) (gap : R) : Prop :=
  forall (flush reciprocal : bool) (ex : R -> R) (order : tree nat) (s : nat -> R) (top : R)
    (t : nat) (alpha : R),
  gap <= alpha -> admissible F ex -> separated F flush alpha t s -> largest s top ->
  count (Nat.eqb t) order = 1%nat ->
  forall k, computed_softmax F flush reciprocal ex order s top k = one_hot t k.

(** The same of weights that are computed in binary32 and then cast to a smaller format, for so many
    keys. *)
Definition one_hot_after_cast (F : precision) (gap : R) (keys : Z) : Prop :=
  forall (flush reciprocal : bool) (ex : R -> R) (order : tree nat) (s : nat -> R) (top : R)
    (t : nat) (alpha : R),
  gap <= alpha -> admissible binary32 ex -> separated binary32 flush alpha t s -> largest s top ->
  count (Nat.eqb t) order = 1%nat -> (Z.of_nat (leaves order) <= keys)%Z ->
  forall k, fl F flush (computed_softmax binary32 flush reciprocal ex order s top k) = one_hot t k.

(** What rounding adds to n factors. *)
Definition growth (u : R) (n : nat) : R := (1 + u) ^ n - 1.

(** What underflow takes at most, twice: the smallest number, or, where subnormal results are flushed,
    twice the smallest normal one. *)
Definition underflow (F : precision) (flush : bool) : R :=
  if flush then 2 * smallest_normal F else smallest F.

(** A number cast to another format, or left as it is; what a cast may change, relatively, and what
    it loses to underflow. *)
Definition cast (H : option precision) (flush : bool) (x : R) : R :=
  match H with Some H => fl H flush x | None => x end.
Definition cast_roundoff (H : option precision) : R :=
  match H with Some H => unit_roundoff H | None => 0 end.
Definition cast_underflow (H : option precision) (flush : bool) : R :=
  match H with Some H => underflow H flush | None => 0 end.
Definition castable (H : option precision) : Prop :=
  match H with Some H => (1 < prec H)%Z | None => True end.
