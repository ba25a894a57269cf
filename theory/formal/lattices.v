(** * Lattices and offsets (T6) *)
From mathcomp Require Import all_ssreflect all_algebra zify.
From Formal Require Import names setting.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import GRing.Theory.
Local Open Scope ring_scope.

(** An output o of stride s fits if its last index does. *)
Lemma outputs_fit (m k r s o : nat) : (0 < k)%N -> (0 < s)%N -> (r * k.-1 < m)%N ->
  (forall j, (j < k)%N -> (o * s + j * r < m)%N) <-> (o < (m - r * k.-1 - 1) %/ s + 1)%N.
Proof.
move=> k0 s0 fits; rewrite addn1 ltnS leq_divRL //; split=> [all_fit | le j jk].
  have last : (k.-1 < k)%N by rewrite prednK.
  by have := all_fit _ last; lia.
have : (j * r <= k.-1 * r)%N by rewrite leq_mul2r -ltnS prednK // jk orbT.
by lia.
Qed.

Section Adjoint.
Variables (R : comRingType) (G : zmodType) (K Q : finType) (key : K -> G) (query : Q -> G).
Hypotheses (keyI : injective key) (queryI : injective query).
Variables (Din Dout N : nat) (offset : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout)).

(** A sum over keys of what is read at one position. *)
Lemma sum_at (V : zmodType) (T : finType) (pos : T -> G) (posI : injective pos) (f : G -> V) p :
  (if on pos p then f p else 0) = \sum_k (if pos k == p then f p else 0).
Proof.
case: (boolP (on pos p)) => [/existsP[k /eqP kp]|/existsPn none].
  rewrite (bigD1 k) //= kp eqxx big1 ?addr0 // => j jk.
  by rewrite -kp (inj_eq posI) (negbTE jk).
by rewrite big1 // => k _; rewrite (negbTE (none k)).
Qed.

Lemma adjoint (X : image R G Din) (Y : image R G Dout) :
  \sum_i convolution offset W 0 (on_keys key X) (query i) *m (Y (query i))^T
  = \sum_k X (key k)
      *m (convolution (fun t => - offset t) (fun t => (W t)^T) 0 (on_keys query Y) (key k))^T.
Proof.
pose term t k i := if key k == query i + offset t then X (key k) *m W t *m (Y (query i))^T else 0.
transitivity (\sum_t \sum_k \sum_i term t k i).
  under eq_bigr do rewrite /convolution add0r mulmx_suml.
  rewrite exchange_big; apply: eq_bigr => t _; rewrite exchange_big /=; apply: eq_bigr => i _.
  have -> : on_keys key X (query i + offset t) *m W t *m (Y (query i))^T
      = if on key (query i + offset t)
        then X (query i + offset t) *m W t *m (Y (query i))^T else 0.
    by rewrite /on_keys; case: (on _ _); rewrite ?mul0mx.
  rewrite (sum_at keyI (fun p => X p *m W t *m (Y (query i))^T)); apply: eq_bigr => k _.
  by rewrite /term; case: eqP => // ->.
under [RHS]eq_bigr do rewrite /convolution add0r raddf_sum mulmx_sumr.
rewrite [RHS]exchange_big; apply: eq_bigr => t _; apply: eq_bigr => k _ /=.
have -> : X (key k) *m (on_keys query Y (key k - offset t) *m (W t)^T)^T
    = if on query (key k - offset t)
      then X (key k) *m W t *m (Y (key k - offset t))^T else 0.
  by rewrite trmx_mul trmxK mulmxA /on_keys; case: (on _ _); rewrite ?trmx0 ?mulmx0.
rewrite (sum_at queryI (fun p => X (key k) *m W t *m (Y p)^T)); apply: eq_bigr => i _.
rewrite /term -subr_eq eq_sym [query i == _]eq_sym; case: eqP => // E.
by rewrite -E.
Qed.
End Adjoint.
