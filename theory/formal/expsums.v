(** * Sums of exponentials have few zeros, so that the matrix of exponentials is invertible (T12) *)
From mathcomp Require Import all_ssreflect all_algebra boolp classical_sets functions reals topology.
From mathcomp Require Import normedtype sequences derive realfun exp ring.
From Formal Require Import names.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory numFieldNormedType.Exports.
Local Open Scope ring_scope.

Section Sums.
Variable R : realType.

Definition expsum n (a c : 'I_n -> R) (t : R) : R := \sum_i a i * expR (c i * t).

Lemma expsum_derive n (a c : 'I_n -> R) (t : R) :
  is_derive t 1 (expsum a c) (expsum (fun i => a i * c i) c t).
Proof.
pose term i : R^o -> R^o := a i \*: (expR \o (c i \*: id)).
have D i : is_derive t (1 : R^o) (term i) (a i *: (expR (c i * t) * (c i * 1))).
  by apply: is_deriveZ; apply: is_derive1_comp; apply: is_deriveZ.
have := is_derive_sum D; congr (is_derive _ _ _ _).
  by apply/funext => s; rewrite fct_sumE.
by apply: eq_bigr => i _; rewrite /GRing.scale /= mulr1; ring.
Qed.

(** n exponentials with distinct rates that vanish together at n increasing points all have the
    coefficient 0: divide by the last exponential, derive, and use Rolle's theorem between the
    points. *)
Lemma expsum_zeros n (a c : 'I_n -> R) (z : nat -> R) : injective c ->
  (forall i, (i.+1 < n)%N -> z i < z i.+1) -> (forall i, (i < n)%N -> expsum a c (z i) = 0) ->
  forall i, a i = 0.
Proof.
elim: n a c z => [|n IH] a c z cI increasing zeros; first by case.
pose inner (i : 'I_n) := widen_ord (leqnSn n) i.
pose b i := a (inner i); pose k i := c (inner i) - c ord_max.
have kI : injective k by move=> i j /addIr/cI/(congr1 val)/= ?; apply: val_inj.
have k0 i : k i != 0.
  by rewrite subr_eq0; apply/eqP => /cI/(congr1 val)/= E; have := ltn_ord i; rewrite E ltnn.
pose g (t : R) : R := expsum b k t + a ord_max.
have gE t : g t = expR (- (c ord_max * t)) * expsum a c t.
  rewrite /g /expsum big_ord_recr /= mulrDr mulr_sumr; congr +%R.
    apply: eq_bigr => i _; rewrite mulrCA -expRD; congr (_ * expR _).
    by rewrite /k; move: (c _) (c _) => u w; ring.
  by rewrite mulrCA -expRD addNr expR0 mulr1.
have Dg t : is_derive t (1 : R^o) (g : R^o -> R^o) (expsum (fun i => b i * k i) k t).
  have := is_deriveD (expsum_derive b k t) (is_derive_cst (a ord_max : R^o) (t : R^o) 1).
  by rewrite addr0.
have g0 i : (i < n.+1)%N -> g (z i) = 0 by move=> lt; rewrite gE zeros ?mulr0.
have /choice[w wP] i : exists w, (i < n)%N ->
    z i < w < z i.+1 /\ expsum (fun i => b i * k i) k w = 0.
  have [lt|_] := ltnP i n; last by exists 0.
  have [||||w] := @Rolle R g (z i) (z i.+1).
  - exact: increasing.
  - by move=> x _; have [] := Dg x.
  - apply: continuous_subspaceT => x; apply: differentiable_continuous.
    by apply/derivable1_diffP; have [] := Dg x.
  - by rewrite !g0 // ltnW.
  rewrite in_itv /= => zw Dw; exists w => _; split=> //.
  by rewrite -(@derive_val _ _ _ _ _ _ _ (Dg w)) (@derive_val _ _ _ _ _ _ _ Dw).
have bk0 : forall i, b i * k i = 0.
  apply: (IH _ k w kI) => [i lt|i lt]; last by have [] := wP i lt.
  have [/andP[_ up] _] := wP i (ltnW lt); have [/andP[low _] _] := wP _ lt.
  exact: lt_trans low.
have b0 i : b i = 0 by have /eqP := bk0 i; rewrite mulf_eq0 (negbTE (k0 i)) orbF => /eqP.
have a0 : a ord_max = 0.
  by have := g0 0%N isT; rewrite /g /expsum big1 ?add0r // => i _; rewrite b0 mul0r.
move=> i; have [lt|ge] := ltnP i n; first by have := b0 (Ordinal lt); congr (a _ = 0); apply: val_inj.
by rewrite -a0; congr a; apply/val_inj/eqP; rewrite /= eqn_leq ge -ltnS ltn_ord.
Qed.

Lemma exponentials_unit n (c r : 'I_n -> R) : injective c -> injective r ->
  \matrix_(h, j) expR (c h * r j) \in unitmx.
Proof.
move=> cI rI; rewrite -row_free_unit -kermx_eq0; apply/rowV0P => v /sub_kermxP vP.
pose s := sort <=%O [seq r j | j <- enum 'I_n].
have sizes : size s = n by rewrite size_sort size_map size_enum_ord.
have sorted_s : sorted <%O s.
  by rewrite lt_sorted_uniq_le sort_uniq map_inj_uniq // enum_uniq sort_le_sorted.
apply/rowP => i; rewrite [RHS]mxE; apply: (@expsum_zeros n (fun i => v 0 i) c (nth 0 s)) => // j lt.
  by apply: (sorted_ltn_nth lt_trans); rewrite ?inE ?sizes // ltnW.
have : nth 0 s j \in s by rewrite mem_nth ?sizes.
rewrite mem_sort => /mapP[l _ ->].
have := congr1 (fun M : 'rV_n => M 0 l) vP; rewrite !mxE => <-.
by apply: eq_bigr => h _; rewrite !mxE.
Qed.
End Sums.
