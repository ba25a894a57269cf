(** * Positional heads are quotients of convolutions (T25) *)
From mathcomp Require Import all_ssreflect all_algebra.
From Formal Require Import names setting exponential.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Quotient.
Variables (R : realFieldType) (e : R -> R) (G : zmodType) (K : finType) (pos : K -> G).
Variables (Din N : nat) (offset : 'I_N -> G) (g : G -> R) (q : G).
Hypotheses (posI : injective pos) (offsetI : injective offset).
Hypothesis covered : forall k, exists t, pos k = q + offset t.

(** The displacements that lead to a key are one for each key. *)
Lemma sum_over_keys (V : zmodType) (f : G -> V) :
  \sum_t (if on pos (q + offset t) then f (q + offset t) else 0) = \sum_k f (pos k).
Proof.
have tap k : {t | pos k = q + offset t}.
  have E : exists t, pos k == q + offset t by have [t tE] := covered k; exists t; apply/eqP.
  by exists (xchoose E); apply/eqP/(xchooseP E).
have tapI : injective (fun k => sval (tap k)).
  by move=> k j kj; apply: posI; rewrite (svalP (tap k)) (svalP (tap j)) kj.
rewrite -big_mkcond (eq_bigl (mem [set sval (tap k) | k : K])) => [|t].
  rewrite big_imset /=; last by move=> k j _ _; apply: tapI.
  by apply: eq_bigr => k _; rewrite -(svalP (tap k)).
apply/existsP/imsetP => [[k /eqP kt]|[k _ ->]]; exists k => //.
  by apply: offsetI; apply: (addrI q); rewrite -(svalP (tap k)).
by rewrite -(svalP (tap k)).
Qed.

Let kernel t : R := e (g (offset t)).

Lemma conv_image (X : image R G Din) :
  convolution offset (fun t => (kernel t)%:M) 0 (on_keys pos X) q
  = \sum_k e (g (pos k - q)) *: X (pos k).
Proof.
rewrite -(sum_over_keys (fun p => e (g (p - q)) *: X p)) /convolution add0r.
apply: eq_bigr => t _; rewrite mul_mx_scalar /on_keys [in RHS]addrAC subrr add0r.
by case: (on _ _); rewrite ?scaler0.
Qed.

Lemma conv_one :
  convolution offset (fun t => (kernel t)%:M) 0 (on_keys pos (fun=> 1%:M)) q 0 0
  = \sum_k e (g (pos k - q)).
Proof.
rewrite -(sum_over_keys (fun p => e (g (p - q)))) /convolution add0r summxE.
apply: eq_bigr => t _; rewrite mul_mx_scalar /on_keys [in RHS]addrAC subrr add0r.
by case: (on _ _); rewrite !mxE ?mulr1 ?mulr0.
Qed.

Lemma head_quotient (X : image R G Din) (extra : R) :
  attend pos (fun k => e (g (pos k - q)) / (\sum_j e (g (pos j - q)) + extra)) X
  = (convolution offset (fun t => (kernel t)%:M) 0 (on_keys pos (fun=> 1%:M)) q 0 0 + extra)^-1
      *: convolution offset (fun t => (kernel t)%:M) 0 (on_keys pos X) q.
Proof.
rewrite conv_image conv_one scaler_sumr; apply: eq_bigr => k _.
by rewrite scalerA mulrC.
Qed.
End Quotient.

Section Torus.
Variables (R : realFieldType) (e : R -> R) (G : finZmodType) (g : G -> R).

(** On a torus every query sees every displacement, and its sum is the same for all. *)
Lemma torus_head Din (X : image R G Din) (q : G) :
  attend id (softmax e (fun k => g (k - q))) X = \sum_delta softmax e g delta *: X (q + delta).
Proof.
rewrite /attend (reindex_inj (addrI q)); apply: eq_bigr => p _ /=.
rewrite /softmax [\sum_j e (g (j - q))](reindex_inj (addrI q)) /=.
under eq_bigr do rewrite addrAC subrr add0r.
by rewrite addrAC subrr add0r.
Qed.
End Torus.
