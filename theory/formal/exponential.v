(** * The exponential of an ordered field, and softmax *)
From mathcomp Require Import all_ssreflect all_algebra.
From Formal Require Import names setting.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Exponential.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e).
Let expD : {morph e : x y / x + y >-> x * y} := expo.1.

Lemma exp0 : e 0 = 1.
Proof.
have ge1 : 1 <= e 0 by have := expo.2 0 (lexx 0); rewrite addr0.
have ne0 : e 0 != 0 by rewrite gt_eqF // (lt_le_trans ltr01 ge1).
by apply: (mulIf ne0); rewrite -expD addr0 mul1r.
Qed.

Lemma expK x : e x * e (- x) = 1.
Proof. by rewrite -expD subrr exp0. Qed.

Lemma exp_gt0 x : 0 < e x.
Proof.
rewrite lt_def; apply/andP; split; last by rewrite [x]splitr expD -expr2 sqr_ge0.
by apply: contra_eq_neq (expK x) => ->; rewrite mul0r eq_sym oner_neq0.
Qed.

Lemma exp_lt x y : x < y -> e x < e y.
Proof.
move=> xy; rewrite -(subrK x y) expD -[X in X < _]mul1r ltr_pM2r ?exp_gt0 //.
have gap : 0 < y - x by rewrite subr_gt0.
by apply: lt_le_trans (expo.2 _ (ltW gap)); rewrite ltrDl.
Qed.

Lemma exp_le x y : x <= y -> e x <= e y.
Proof. by rewrite le_eqVlt => /predU1P[-> // | /exp_lt/ltW]. Qed.

Lemma exp_inj : injective e.
Proof. by move=> x y exy; case: (ltgtP x y) => // /exp_lt; rewrite exy ltxx. Qed.

Lemma exp_natl n x : e (n%:R * x) = e x ^+ n.
Proof. by elim: n => [|n IH]; rewrite ?mul0r ?exp0 // exprSr -IH -expD mulrSr mulrDl mul1r. Qed.

Lemma exp_sum (I : finType) (f : I -> R) : e (\sum_i f i) = \prod_i e (f i).
Proof. exact: (big_morph e expD exp0). Qed.

(** A large sharpness a leaves little: e(-a) <= 1 / (1 + a). *)
Lemma expN_le a : 0 <= a -> e (- a) <= (1 + a)^-1.
Proof.
move=> a0; have a1 : 0 < 1 + a by rewrite ltr_wpDr ?ltr01.
rewrite -(ler_pM2l (exp_gt0 a)) expK ler_pdivlMr // mul1r; exact: expo.2.
Qed.

Section Softmax.
Variable K : finType.
Implicit Types (s : K -> R) (k t : K).

Lemma sum_exp_gt0 s t : 0 < \sum_j e (s j).
Proof. by rewrite (bigD1 t) //= ltr_wpDr ?exp_gt0 // sumr_ge0 // => j _; apply/ltW/exp_gt0. Qed.

Lemma softmax_gt0 s k : 0 < softmax e s k.
Proof. by rewrite divr_gt0 ?exp_gt0 ?(sum_exp_gt0 s k). Qed.

Lemma softmax_sum1 s t : \sum_k softmax e s k = 1.
Proof. by rewrite -mulr_suml divff // gt_eqF // (sum_exp_gt0 s t). Qed.

Lemma softmax_eq s s' : s =1 s' -> softmax e s =1 softmax e s'.
Proof. by move=> ss' k; rewrite /softmax ss'; congr (_ / _); apply: eq_bigr => j _; rewrite ss'. Qed.

(** A constant of the row cancels. *)
Lemma softmax_constant s c : softmax e (fun j => s j + c) =1 softmax e s.
Proof.
move=> k; rewrite /softmax expD; under eq_bigr do rewrite expD.
by rewrite -mulr_suml -mulf_div divff ?mulr1 // gt_eqF ?exp_gt0.
Qed.

(** What the target leaves, if its score is 0: 1 - 1/S. *)
Lemma softmax_target s t : s t = 0 -> softmax e s t = (\sum_k e (s k))^-1.
Proof. by move=> st; rewrite /softmax st exp0 mul1r. Qed.

Lemma softmax_sink c s k :
  softmax_with_sink e c s k = (\sum_j e (s j)) / (\sum_j e (s j) + e c) * softmax e s k.
Proof.
rewrite /softmax_with_sink /softmax; have := sum_exp_gt0 s k.
by move: (\sum_j _) => S S0; rewrite [RHS]mulrC mulrA divfK ?gt_eqF.
Qed.
End Softmax.

(** The keys of a box are the functions that pick an index on every axis. *)
Lemma product_of_sums d (axis : 'I_d -> finType) (F : forall i, axis i -> R)
    (k : {dffun forall i, axis i}) :
  \prod_i (\sum_j F i j) = \sum_(f : {dffun forall i, axis i}) \prod_i F i (f i).
Proof.
pose J : finType := [finType of {i : 'I_d & axis i}].
have retag i (x : axis i) (j : J) : tag j = i -> Tagged axis (tagged_as (Tagged axis x) j) = j.
  by case: j => i' j /= ii'; case: i / ii' x => x; rewrite tagged_asE.
pose G (i : 'I_d) (j : J) : R := F i (tagged_as (Tagged axis (k i)) j).
have -> : \prod_i (\sum_j F i j) = \prod_i \sum_(j : J | tag j == i) G i j.
  apply: eq_bigr => i _; pose inj (j : axis i) : J := Tagged axis j.
  rewrite (reindex_onto inj (fun j => tagged_as (Tagged axis (k i)) j)) /=; last first.
    by move=> j /eqP; apply: retag.
  by apply: eq_big => [j | j _]; rewrite /G /inj ?eqxx ?tagged_asE ?eqxx.
rewrite bigA_distr_big_dep.
pose graph (f : {dffun forall i, axis i}) : {ffun 'I_d -> J} := [ffun i => Tagged axis (f i)].
pose pick (g : {ffun 'I_d -> J}) : {dffun forall i, axis i} :=
  [ffun i => tagged_as (Tagged axis (k i)) (g i)].
rewrite (reindex_onto graph pick) /=; last first.
  by move=> g /familyP gf; apply/ffunP => i; rewrite !ffunE retag //; apply/eqP: (gf i).
apply: eq_big => [f | f _]; last by apply: eq_bigr => i _; rewrite /G /graph ffunE tagged_asE.
have -> : pick (graph f) = f by apply/ffunP => i; rewrite !ffunE tagged_asE.
by rewrite eqxx andbT; apply/familyP => i; apply/eqP; rewrite ffunE.
Qed.

Lemma softmax_product d (axis : 'I_d -> finType) (s : forall i, axis i -> R)
    (k : {dffun forall i, axis i}) :
  softmax e (fun k : {dffun forall i, axis i} => \sum_i s i (k i)) k = \prod_i softmax e (s i) (k i).
Proof.
rewrite /softmax exp_sum big_split /= prodfV; congr (_ / _).
by rewrite (product_of_sums (fun i j => e (s i j)) k); apply: eq_bigr => f _; rewrite exp_sum.
Qed.
End Exponential.
