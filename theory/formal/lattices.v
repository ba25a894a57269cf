(** * Lattices and offsets (T6) *)
From mathcomp Require Import all_ssreflect all_algebra zify.
From Formal Require Import names setting exponential.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
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

(** ** Sizes *)

(** "same": the reach is shared out, and there are as many outputs as pixels. *)
Lemma same_outputs n R : (0 < n)%N -> ((n + R %/ 2 + (R - R %/ 2) - R - 1) %/ 1 + 1 = n)%N.
Proof. by move=> n0; rewrite divn1; have := leq_div R 2; lia. Qed.

(** From which images a convolution has just n outputs. *)
Lemma outputs_inverse (L p R s n : nat) : (0 < s)%N -> (R < L + 2 * p)%N -> (0 < n)%N ->
  ((L + 2 * p - R - 1) %/ s + 1 = n)%N
  <-> (exists2 e, e < s & L + 2 * p = n.-1 * s + R + 1 + e)%N.
Proof.
move=> s0 fits n0; split=> [<- | [e es E]].
  exists ((L + 2 * p - R - 1) %% s)%N; first by rewrite ltn_mod.
  by rewrite (addn1 (_ %/ _)) /=; have := divn_eq (L + 2 * p - R - 1) s; lia.
have -> : (L + 2 * p - R - 1 = n.-1 * s + e)%N by lia.
by rewrite divnMDl // divn_small // addn0 addn1 prednK.
Qed.

(** Which outputs of a transposed convolution some pixel reaches. *)
Lemma unreached (n k s r p o i j : nat) : (i < n)%N -> (j < k)%N -> (o + p = i * s + j * r)%N ->
  (o + p < n.-1 * s + r * k.-1 + 1)%N /\ (r = 1 -> k <= s -> (o + p) %% s < k)%N.
Proof.
move=> lt_i lt_j E; split.
  have : (i * s <= n.-1 * s)%N by rewrite leq_mul2r; apply/orP; right; lia.
  have : (j * r <= k.-1 * r)%N by rewrite leq_mul2r; apply/orP; right; lia.
  by lia.
by move=> r1 ks; rewrite E r1 muln1 modnMDl modn_small //; apply: leq_trans ks.
Qed.

(** The windows of a pooling with ceil_mode. *)
Lemma ceil_outputs (n p w s o : nat) : (0 < n)%N -> (0 < s)%N -> (w <= n + 2 * p)%N ->
  (o < minn ((n + 2 * p - w + s.-1) %/ s) ((n + p).-1 %/ s) + 1)%N
  <-> (o = 0 \/ o.-1 * s + w < n + 2 * p)%N /\ (o * s < n + p)%N.
Proof.
move=> n0 s0 fits; rewrite addn1 ltnS leq_min !leq_divRL //.
split=> [/andP[first second] | [first second]]; last first.
  apply/andP; split; last by lia.
  by case: first => [-> //|]; case: o second => [//|o] _ /=; rewrite mulSn; lia.
split; last by lia.
case: o first second => [|o]; [by left | rewrite mulSn => first _; right => /=; lia].
Qed.

(** ** Groups: products with the blocks, side by side *)
Section Groups.
Variables (R : ringType) (G : zmodType) (g Din Dout N : nat) (offset : 'I_N -> G).
Variables (W : 'I_N -> 'M[R]_(g * Din, g * Dout)) (b : 'rV[R]_(g * Dout)).
Hypothesis diagonal : forall t a a' c m, a != a' ->
  W t (mxvec_index a c) (mxvec_index a' m) = 0.

Lemma group_product (x : 'rV[R]_(g * Din)) t a :
  row a (vec_mx (x *m W t)) = row a (vec_mx x) *m diagonal_block (W t) a.
Proof.
apply/rowP => m; rewrite !mxE (reindex _ (curry_mxvec_bij _ _)) /=.
transitivity (\sum_a' \sum_c x 0 (mxvec_index a' c) * W t (mxvec_index a' c) (mxvec_index a m)).
  by rewrite pair_bigA; apply: eq_bigr => -[].
rewrite (bigD1 a) //= [X in _ + X]big1 ?addr0 => [|a' aa']; last first.
  by apply: big1 => c _; rewrite diagonal ?mulr0.
by apply: eq_bigr => c _; rewrite !mxE.
Qed.

Lemma group_convolution (X : image R G (g * Din)) q a :
  row a (vec_mx (convolution offset W b X q))
  = convolution offset (fun t => diagonal_block (W t) a) (row a (vec_mx b))
      (fun p => row a (vec_mx (X p))) q.
Proof.
rewrite /convolution !linearD /= !linear_sum /=; congr +%R; apply: eq_bigr => t _.
exact: group_product.
Qed.
End Groups.

(** ** Pooling: a head that is uniform over a window *)
Section Pooling.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (K : finType) (P : pred K).

Lemma window_weight (c : R) (t : K) : P t -> forall k,
  masked_softmax e (fun k => if P k then Some c else None) k = (P k)%:R / #|P|%:R.
Proof.
move=> Pt k; rewrite /masked_softmax.
have -> : \sum_j (if (if P j then Some c else None) is Some s then e s else 0) = #|P|%:R * e c.
  rewrite (bigID P) /= [X in _ + X]big1 ?addr0 => [|j /negbTE -> //].
  by rewrite (eq_bigr (fun=> e c)) => [|j -> //]; rewrite sumr_const mulr_natl.
have c0 : e c != 0 by rewrite gt_eqF ?exp_gt0.
case: (P k); last by rewrite !mul0r.
by rewrite invfM mulrCA divff // mulr1 mul1r.
Qed.
End Pooling.

Lemma window_share (R : realFieldType) d (axis : 'I_d -> finType) (P : forall i, pred (axis i))
    (k : {dffun forall i, axis i}) :
  #|[pred f : {dffun forall i, axis i} | [forall i, P i (f i)]]|%:R = \prod_i #|P i|%:R :> R.
Proof.
have all (f : {dffun forall i, axis i}) : ([forall i, P i (f i)])%:R = \prod_i (P i (f i))%:R :> R.
  have [/forallP all | /forallPn[i none]] := boolP [forall i, P i (f i)].
    by rewrite big1 // => i _; rewrite all.
  by rewrite (bigD1 i) //= (negbTE none) mul0r.
have count (T : finType) (Q : pred T) : #|Q|%:R = \sum_x (Q x)%:R :> R.
  by rewrite -sum1_card natr_sum big_mkcond; apply: eq_bigr => x _; rewrite unfold_in; case: (Q x).
rewrite count; under eq_bigr do rewrite /= all.
rewrite -(product_of_sums (fun i x => (P i x)%:R) k).
by apply: eq_bigr => i _; rewrite count.
Qed.
