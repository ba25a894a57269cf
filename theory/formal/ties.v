(** * Ties and ranks (T15) *)
From mathcomp Require Import all_ssreflect all_algebra zify ring.
From Formal Require Import names setting exponential leak.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(** ** A head does not see an exchange of keys that it scores alike *)
Lemma tied_head (R : ringType) (K : finType) (C S T : Type) (D : nat) (kind : K -> C)
    (normalise : {ffun K -> S} -> {ffun K -> R}) (s : T -> C -> S) (v : T -> C -> 'rV[R]_D)
    (pi : K -> K) (X : K -> T) :
  injective pi -> equivariant normalise -> (forall k, kind (pi k) = kind k) ->
  \sum_k normalise [ffun k => s (X (pi k)) (kind k)] k *: v (X (pi k)) (kind k)
  = \sum_k normalise [ffun k => s (X k) (kind k)] k *: v (X k) (kind k).
Proof.
move=> piI equi tied; rewrite [RHS](reindex_inj piI); apply: eq_bigr => k _ /=.
rewrite tied; congr (_ *: _); rewrite -(equi _ _ piI); congr (fun_of_fin (normalise _) k).
by apply/ffunP => j; rewrite !ffunE tied.
Qed.

(** Depth: a layer commutes with what preserves the kinds of all pairs, and so does a network of such
    layers and of maps of single tokens. *)
Lemma equivariant_layer (R : ringType) (K : finType) (C S T : Type) (D : nat) (kind : K -> K -> C)
    (normalise : {ffun K -> S} -> {ffun K -> R}) (s : T -> T -> C -> S) (v : T -> T -> C -> 'rV[R]_D)
    (pi : K -> K) (X : K -> T) (q : K) :
  injective pi -> equivariant normalise -> (forall q k, kind (pi q) (pi k) = kind q k) ->
  let layer (X : K -> T) (q : K) :=
    \sum_k normalise [ffun k => s (X q) (X k) (kind q k)] k *: v (X q) (X k) (kind q k) in
  layer (fun k => X (pi k)) q = layer X (pi q).
Proof.
move=> piI equi same; cbv zeta; rewrite [RHS](reindex_inj piI); apply: eq_bigr => k _ /=.
rewrite same; congr (_ *: _); rewrite -(equi _ _ piI); congr (fun_of_fin (normalise _) k).
by apply/ffunP => j; rewrite !ffunE same.
Qed.

(** ** The floor: one output cannot be near two targets *)
Section Floor.
Variables (R : realFieldType) (K C : finType) (pi : K -> K) (W : K -> C -> R).
Hypothesis piI : injective pi.

Let target (X : K -> C -> R) : R := \sum_k \sum_c W k c * X k c.
Let gap k c : R := W k c - W (pi k) c.

Lemma gap_sum c : \sum_k gap k c = 0.
Proof.
have E : \sum_k W k c = \sum_k W (pi k) c by apply: reindex_inj.
by rewrite sumrB E subrr.
Qed.

(** The image that is 1 where the gap is positive. *)
Let lit k c : R := (0 < gap k c)%R%:R.

Lemma lit_gap : \sum_k \sum_c gap k c * lit k c = 2%:R^-1 * \sum_k \sum_c `|gap k c|.
Proof.
have half : \sum_k \sum_c gap k c * lit k c
    = 2%:R^-1 * (\sum_k \sum_c `|gap k c|) + 2%:R^-1 * (\sum_k \sum_c gap k c).
  rewrite -mulrDr -big_split mulr_sumr; apply: eq_bigr => k _ /=.
  rewrite -big_split mulr_sumr; apply: eq_bigr => c _ /=; rewrite /lit.
  have [pos|neg] := ltP 0 (gap k c).
    by rewrite gtr0_norm // mulr1; move: (gap k c) => y; field.
  by rewrite ler0_norm // mulr0 addNr mulr0.
rewrite half [X in _ + _ * X]exchange_big [X in _ + _ * X]big1 ?mulr0 ?addr0 // => c _.
exact: gap_sum.
Qed.

Lemma floor (f : (K -> C -> R) -> R) :
  (forall X Y : K -> C -> R, (forall k c, Y k c = X (pi k) c) -> f Y = f X) ->
  exists2 X : K -> C -> R, (forall k c, 0 <= X k c <= 1)
    & 4%:R^-1 * (\sum_k \sum_c `|gap k c|) <= `|f X - target X|.
Proof.
move=> tied; pose back k c := lit (invF piI k) c.
have fE : f lit = f back by apply: tied => k c; rewrite /back invF_f.
have unit_image (Y : K -> C -> R) : Y = lit \/ Y = back -> forall k c, 0 <= Y k c <= 1.
  by case=> -> k c; rewrite /back /lit ler0n lern1 leq_b1.
have apart : target lit - target back = 2%:R^-1 * \sum_k \sum_c `|gap k c|.
  rewrite -lit_gap /target [X in _ - X](reindex_inj piI) -sumrB; apply: eq_bigr => k _ /=.
  by rewrite -sumrB; apply: eq_bigr => c _; rewrite /back invF_f -mulrBl.
set F := \sum_k _ in apart *; have [far|near] := leP (4%:R^-1 * F) `|f lit - target lit|.
  by exists lit => //; apply: unit_image; left.
exists back; first by apply: unit_image; right.
rewrite leNgt; apply/negP => near'; have F0 : 0 <= F by do 2!(apply: sumr_ge0 => ? _).
have : `|target lit - target back| < 4%:R^-1 * F + 4%:R^-1 * F.
  have -> : target lit - target back = (f back - target back) - (f lit - target lit).
    by rewrite fE; move: (f back) (target lit) (target back) => a y z; ring.
  by apply: le_lt_trans (ler_normB _ _) _; rewrite ltrD.
rewrite apart ger0_norm ?mulr_ge0 ?invr_ge0 ?ler0n //.
suff -> : 4%:R^-1 * F + 4%:R^-1 * F = 2%:R^-1 * F by rewrite ltxx.
by move: F {near near' F0 apart} => y; field.
Qed.
End Floor.

(** ** Heads of low rank *)
Section Rank.
Variables (F : fieldType) (T Nh m : nat) (moved : pred 'I_T) (shift : 'I_T -> 'I_T).
Hypothesis shiftI : {in moved &, injective shift}.

Definition shift_matrix : 'M[F]_T := \matrix_(q, k) (moved q && (shift q == k))%:R.

Lemma rank_shift : (#|moved| <= \rank shift_matrix)%N.
Proof.
pose E : 'M[F]_(#|moved|, T) := \matrix_(i, q) (enum_val i == q)%:R.
have ES i k : (E *m shift_matrix) i k = (shift (enum_val i) == k)%:R.
  rewrite mxE (bigD1 (enum_val i)) //= !mxE eqxx mul1r big1 ?addr0 => [|q qi].
    by rewrite (enum_valP i : moved _).
  by rewrite !mxE eq_sym (negbTE qi) mul0r.
have one : (E *m shift_matrix) *m (E *m shift_matrix)^T = 1%:M.
  apply/matrixP => i j; rewrite mxE; under eq_bigr do rewrite ES [_^T _ _]mxE ES.
  rewrite (bigD1 (shift (enum_val i))) //= eqxx mul1r big1 ?addr0 => [|k ki].
    rewrite !mxE; have [->|ij] := eqVneq i j; first by rewrite eqxx.
    case: eqP => // same; case/eqP: ij; apply/enum_val_inj/esym.
    by apply: (shiftI _ _ same); apply: enum_valP.
  by rewrite eq_sym (negbTE ki) mul0r.
rewrite -[X in (X <= _)%N](mxrank1 F) -one; apply: leq_trans (mxrankM_maxl _ _) _.
exact: mxrankM_maxr.
Qed.

Lemma rank_heads (A : 'I_Nh -> 'M[F]_T) (phi : 'I_Nh -> 'M[F]_(T, m)) (psi : 'I_Nh -> 'M[F]_(m, T))
    (c : 'I_Nh -> F) : (forall h, A h = phi h *m psi h) -> (\rank (\sum_h c h *: A h)%R <= Nh * m)%N.
Proof.
move=> factor; have sum_rank (I : Type) (r : seq I) (B : I -> 'M[F]_T) :
    (\rank (\sum_(i <- r) B i)%R <= \sum_(i <- r) \rank (B i))%N.
  elim: r => [|i r IH]; first by rewrite !big_nil mxrank0.
  by rewrite !big_cons; apply: leq_trans (mxrank_add _ _) _; rewrite leq_add2l.
apply: leq_trans (sum_rank _ _ _) _; have -> : (Nh * m = \sum_(h < Nh) m)%N by rewrite sum_nat_const card_ord.
apply: leq_sum => h _; apply: leq_trans (mxrank_scale _ _) _; rewrite factor.
exact: leq_trans (mxrankM_maxl _ _) (rank_leq_col _).
Qed.
End Rank.

(** With one rank too few there is an image that the layer does not see, and a grey image is as
    good. *)
Section Unseen.
Variables (R : realFieldType) (T : nat) (moved : pred 'I_T) (shift : 'I_T -> 'I_T) (M : 'M[R]_T).
Hypothesis shiftI : {in moved &, injective shift}.
Hypothesis low : (\rank M < #|moved|)%N.

Lemma unseen_image : exists z : 'cV[R]_T,
  [/\ M *m z = 0, (forall k, `|z k 0| <= 1) & exists2 q, moved q & `|z (shift q) 0| = 1].
Proof.
pose E : 'M[R]_(T, #|moved|) := \matrix_(k, i) (k == shift (enum_val i))%:R.
have rank_ME : (\rank ((M *m E)^T) < #|moved|)%N.
  by rewrite mxrank_tr; apply: leq_ltn_trans low; apply: mxrankM_maxl.
have /rowV0Pn[w /sub_kermxP wE w0] : kermx (M *m E)^T != 0.
  by rewrite -mxrank_eq0 mxrank_ker subn_eq0 -ltnNge.
have [i0 i0P] : exists i, w 0 i != 0.
  have [/existsP //|/existsPn none] := boolP [exists i, w 0 i != 0].
  case/negP: w0; apply/eqP/rowP => i; have := none i.
  by rewrite negbK mxE => /eqP.
case: (@arg_maxP _ _ _ i0 predT (fun i => `|w 0 i|) isT) => i _ top.
have wi : 0 < `|w 0 i| by rewrite (lt_le_trans _ (top i0 isT)) // normr_gt0.
pose z : 'cV[R]_T := (`|w 0 i|)^-1 *: (E *m w^T).
have at_pixel j : z (shift (enum_val j)) 0 = w 0 j / `|w 0 i|.
  rewrite !mxE mulrC (bigD1 j) //= !mxE eqxx mul1r big1 ?addr0 // => l lj.
  rewrite !mxE; case: eqP => [E1|_]; last by rewrite mul0r.
  case/eqP: lj; apply/enum_val_inj/esym.
  by apply: (shiftI _ _ E1); apply: enum_valP.
exists z; split.
- by rewrite -scalemxAr mulmxA -[M *m E]trmxK -trmx_mul wE trmx0 scaler0.
- move=> k; have [/existsP[j /eqP ->]|/existsPn none] := boolP [exists j : 'I_#|moved|, k == shift (enum_val j)].
    by rewrite at_pixel normrM normfV normr_id ler_pdivrMr // mul1r; apply: top.
  rewrite !mxE big1 ?mulr0 ?normr0 ?ler01 // => j _.
  by rewrite !mxE (negbTE (none j)) mul0r.
- exists (enum_val i); first exact: (enum_valP i).
  by rewrite at_pixel normrM normfV normr_id divff // gt_eqF.
Qed.

Lemma grey_is_as_good (b : 'I_T -> R) : exists2 X : 'cV[R]_T, (forall k, 0 <= X k 0 <= 1)
  & exists2 q, moved q & 2%:R^-1 <= `|X (shift q) 0 - ((M *m X) q 0 + b q)|.
Proof.
have [z [unseen small [q mq zq]]] := unseen_image.
pose X (s : R) : 'cV[R]_T := \col_k (2%:R^-1 + s * (z k 0 / 2%:R)).
have half : 2%:R^-1 + 2%:R^-1 = 1 :> R by rewrite [RHS](splitr 1) !div1r.
have box s : s = 1 \/ s = -1 -> forall k, 0 <= X s k 0 <= 1.
  move=> s1 k; rewrite mxE.
  have : `|s * (z k 0 / 2%:R)| <= 2%:R^-1.
    have -> : `|s * (z k 0 / 2%:R)| = `|z k 0| / 2%:R.
      rewrite normrM [`|z k 0 / _|]normrM normfV [`|2%:R|]ger0_norm ?ler0n //.
      by case: s1 => ->; rewrite ?normrN1 ?normr1 mul1r.
    by rewrite ler_pdivrMr ?ltr0n // mulVf ?pnatr_eq0.
  rewrite ler_norml => /andP[lo hi]; rewrite -lerBlDl sub0r lo /= -lerBrDl.
  by rewrite -[X in _ <= X - _]half addrK.
have same : (M *m X 1) q 0 = (M *m X (-1)) q 0.
  apply/eqP; rewrite -subr_eq0; apply/eqP.
  have -> : (M *m X 1) q 0 - (M *m X (-1)) q 0 = (M *m (X 1 - X (-1))) q 0.
    by rewrite mulmxBr !mxE.
  have -> : X 1 - X (-1) = z.
    by apply/colP => k; rewrite !mxE; move: (z k 0) => y; field.
  by rewrite unseen mxE.
have apart : `|X 1 (shift q) 0 - X (-1) (shift q) 0| = 1.
  rewrite -[RHS]zq; congr `|_|; rewrite !mxE.
  by move: (z (shift q) 0) => v; field.
set y := (M *m X (-1)) q 0 + b q.
have [far|near] := leP 2%:R^-1 `|X 1 (shift q) 0 - y|.
  by exists (X 1); [apply: box; left | exists q; rewrite // same].
exists (X (-1)); first by apply: box; right.
exists q => //; rewrite -/y leNgt; apply/negP => near'.
have : `|X 1 (shift q) 0 - X (-1) (shift q) 0| < 2%:R^-1 + 2%:R^-1.
  apply: le_lt_trans (_ : _ <= `|X 1 (shift q) 0 - y| + `|X (-1) (shift q) 0 - y|) (ltrD near near').
  rewrite [`|X (-1) _ _ - y|]distrC; apply: le_trans (ler_normD _ _).
  by rewrite addrA subrK.
by rewrite apart half ltxx.
Qed.
End Unseen.

(** ** ALiBi: scores that fall with the distance |delta_1| + ... + |delta_d| *)
Section Alibi.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (slope : R) (d : nat).
Variables (K : finType) (pos : K -> position d).
Hypotheses (slope0 : 0 < slope) (posI : injective pos).
Let x := e (- slope).
Let x0 : 0 < x := exp_gt0 expo _.
Let x1 : x < 1 := exp_neg_lt1 expo slope0.

Lemma distance_axis N : \sum_(j < N + N.+1) x ^+ `|j%:Z - N%:Z| <= (1 + x) / (1 - x).
Proof.
have y1 : 0 < 1 - x by rewrite subr_gt0.
rewrite ler_pdivlMr // big_split_ord big_ord_recl /= (reindex_inj rev_ord_inj) /= addn0 subrr expr0.
set L := \sum_(j < N) _; set M := \sum_(i < N) _.
have -> : L = x * \sum_(n < N) x ^+ n.
  rewrite mulr_sumr; apply: eq_bigr => n _; rewrite -exprS; congr (_ ^+ _).
  by have := ltn_ord n; lia.
have -> : M = x * \sum_(n < N) x ^+ n.
  rewrite mulr_sumr; apply: eq_bigr => n _; rewrite -exprS; congr (_ ^+ _).
  by rewrite /bump /=; lia.
have geometric : (\sum_(n < N) x ^+ n) * (1 - x) <= 1.
  by rewrite -opprB mulrN mulrC -subrX1 opprB lerBlDr lerDl exprn_ge0 // ltW.
have := ler_wpM2l (ltW x0) geometric; rewrite mulr1; move: (\sum_(n < N) _) => s le.
have -> : (x * s + (1 + x * s)) * (1 - x) = x * (s * (1 - x)) + x * (s * (1 - x)) + (1 - x) by ring.
by rewrite -lerBrDr; apply: le_trans (lerD le le) _; rewrite lerBrDr; have -> : x + x + (1 - x) = 1 + x by ring.
Qed.

Lemma alibi_leak (t : K) :
  1 - softmax e (fun k => - (slope * (\sum_i `|(pos k - pos t)%R 0%R i|)%:R)) t
  <= 1 - ((1 - x) / (1 + x)) ^+ d.
Proof.
have [N near] := reach pos t; rewrite lerD2l lerN2 softmax_target //; last first.
  by rewrite subrr big1 ?mulr0 ?oppr0 // => i _; rewrite mxE.
have S0 := sum_exp_gt0 expo (fun k => - (slope * (\sum_i `|(pos k - pos t)%R 0%R i|)%:R)) t.
have p : 0 < 1 + x by rewrite addr_gt0 ?ltr01.
have q : 0 < 1 - x by rewrite subr_gt0.
rewrite -[X in X <= _]invrK lef_pV2 ?posrE ?invr_gt0 ?exprn_gt0 ?divr_gt0 // -exprVn invf_div.
have -> : \sum_k e (- (slope * (\sum_i `|(pos k - pos t)%R 0%R i|)%:R))
    = \sum_k \prod_i x ^+ `|(pos k - pos t)%R 0%R i|.
  by apply: eq_bigr => k _; rewrite -expr_sum -exp_natl // mulrN mulrC.
apply: le_trans (sum_le_axes (w := fun _ z => x ^+ `|z|) posI _ near) _.
  by move=> _ z; apply/exprn_ge0/ltW.
apply: (@le_trans _ _ (\prod_(i < d) ((1 + x) / (1 - x)))); last by rewrite prodr_const card_ord.
apply: ler_prod => i _; rewrite distance_axis andbT.
by apply: sumr_ge0 => j _; apply/exprn_ge0/ltW.
Qed.
End Alibi.

(** Under a causal mask a head of slope m weighs lag j by x^j / (1 + x + ... + x^q). *)
Lemma causal_periodic (R : realFieldType) (x : R) (q m j : nat) : 0 < x ->
  x ^+ j / (\sum_(i < q.+1) x ^+ i)
  = \sum_(l < m.+1) x ^+ (j + l * q.+1) / (\sum_(i < m.+1 * q.+1) x ^+ i).
Proof.
move=> x0; have pos n : 0 < \sum_(i < n.+1) x ^+ i.
  by rewrite big_ord_recl ltr_wpDr ?expr0 ?ltr01 // sumr_ge0 // => i _; apply/exprn_ge0/ltW.
have blocks n : \sum_(i < n * q.+1) x ^+ i = (\sum_(l < n) x ^+ (l * q.+1)) * \sum_(i < q.+1) x ^+ i.
  elim: n => [|n IH]; first by rewrite mul0n !big_ord0 mul0r.
  rewrite mulSn addnC big_split_ord /= IH [\sum_(l < n.+1) _]big_ord_recr /= mulrDl; congr +%R.
  by rewrite mulr_sumr; apply: eq_bigr => i _; rewrite exprD.
rewrite -mulr_suml blocks; have b0 := pos q; have s0 : 0 < \sum_(l < m.+1) x ^+ (l * q.+1).
  rewrite big_ord_recl ltr_wpDr ?mul0n ?expr0 ?ltr01 // sumr_ge0 // => i _.
  exact/exprn_ge0/ltW.
have -> : \sum_(l < m.+1) x ^+ (j + l * q.+1) = x ^+ j * \sum_(l < m.+1) x ^+ (l * q.+1).
  by rewrite mulr_sumr; apply: eq_bigr => l _; rewrite exprD.
by move: (\sum_(l < _) _) (\sum_(i < _) _) (x ^+ j) s0 b0 => s b y s0 b0; field; rewrite !gt_eqF.
Qed.
