(** * The setting, over the real numbers

    [R : realType] is a field of real numbers, [expR] and [ln] its exponential and its logarithm,
    [sup] the least upper bound of a set. *)
From mathcomp Require Import all_ssreflect all_algebra classical_sets reals.
From Formal Require Import setting.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Local Open Scope classical_set_scope.

(** Jacobi's theta function: the sum of x^(n^2) over all integers n, as the supremum of the partial
    sums, which increase. *)
Definition theta_series (R : realType) (x : R) : R := sup [set theta x N | N in [set: nat]].
