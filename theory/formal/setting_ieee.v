(** * The setting, with infinities and NaN

    Flocq's model of IEEE 754: [binary_float prec emax] are its numbers, zeros, infinities and NaN
    included, [Bplus] and [Bmult] its sum and product in the rounding mode m. *)
From Coq Require Import ZArith.
From Flocq Require Import Core BinarySingleNaN.
From Formal Require Import setting_floats.

Section Ieee.
Variables (prec emax : Z) (hp : Prec_gt_0 prec) (he : Prec_lt_emax prec emax) (m : mode).
Notation number := (binary_float prec emax).

(** A sum in the order of a tree. *)
Fixpoint ieee_sum {A} (z : A -> number) (order : tree A) : number :=
  match order with Leaf a => z a | Node l r => Bplus m (ieee_sum z l) (ieee_sum z r) end.

(** One output of a dense layer: head h sums weight times pixel over its keys, for every channel c;
    the output sums head times matrix entry over heads and channels, and the bias. *)
Definition dense_output (w X W : nat -> nat -> number) (b : number) (keys : nat -> tree nat)
    (terms : tree (option (nat * nat))) : number :=
  let head h c := ieee_sum (fun k => Bmult m (w h k) (X k c)) (keys h) in
  ieee_sum (fun a => match a with Some (h, c) => Bmult m (head h c) (W h c) | None => b end) terms.
End Ieee.

(** A leaf of a tree. *)
Fixpoint leaf {A} (a : A) (order : tree A) : Prop :=
  match order with Leaf b => b = a | Node l r => leaf a l \/ leaf a r end.

(** The same number, up to the sign of zero. *)
Definition same {prec emax} (x y : binary_float prec emax) : Prop :=
  x = y \/ exists s s', x = B754_zero s /\ y = B754_zero s'.

(** Weights that are exactly one-hot: 1 at key t, a zero of either sign elsewhere. *)
Definition ieee_one_hot {prec emax} (hp : Prec_gt_0 prec) (he : Prec_lt_emax prec emax) (t : nat)
    (w : nat -> binary_float prec emax) : Prop :=
  w t = Bone /\ forall k, k <> t -> exists s, w k = B754_zero s.
