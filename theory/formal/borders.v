(** * Borders (T5): clamp, sink, and what no head can do *)
From mathcomp Require Import all_ssreflect all_algebra zify ring.
From Formal Require Import names setting shifts exponential leak.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(** ** Replicate: the angle at the clamp is not acute *)
Section Clamp.
Variables (d : nat) (lower upper : position d).
Hypothesis box : forall i, lower 0 i <= upper 0 i.

Lemma clamp_angle (t k : position d) : (forall i, lower 0 i <= k 0 i <= upper 0 i) ->
  (sqnorm (clamp lower upper t - t)%R + sqnorm (k - clamp lower upper t)%R <= sqnorm (k - t)%R)%N.
Proof.
move=> inside; rewrite /sqnorm -big_split; apply: leq_sum => i _ /=; rewrite !mxE.
have := box i; have := inside i.
move: (lower 0 i) (upper 0 i) (k 0 i) (t 0 i) => l m y z /andP[ly ym] lm.
set c := Num.min _ _; have [a [b [-> [-> ->]]]] : exists a b : nat,
    (`|c - z| = a /\ `|y - c| = b /\ `|y - z| = (a + b)%N)%N.
  by exists `|c - z|%N, `|y - c|%N; rewrite /c; lia.
by rewrite sqrnD leq_addr.
Qed.

Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (alpha : R).
Hypothesis alpha0 : 0 < alpha.
Variables (K : finType) (pos : K -> position d).
Hypothesis posI : injective pos.
Hypothesis inside : forall k i, lower 0 i <= pos k 0 i <= upper 0 i.

Lemma clamp_leak q Delta c N : pos c = clamp lower upper (q + Delta) -> within pos (pos c) N ->
  1 - quadratic_weights e alpha pos q Delta c <= 1 - (theta (e (- alpha)) N ^+ d)^-1.
Proof.
move=> cE near; set t := q + Delta in cE; set m := (sqnorm (pos c - t))%:R : R.
pose s k : R := - (alpha * ((sqnorm (pos k - t))%:R - m)).
have -> : quadratic_weights e alpha pos q Delta c = softmax e s c.
  rewrite -(softmax_constant expo s (alpha * (sqnorm Delta)%:R - alpha * m)).
  apply: softmax_eq => k; rewrite quadratic_score /s /t opprD addrA.
  by move: ((sqnorm _)%:R : R) ((sqnorm _)%:R : R) => y z; ring.
rewrite softmax_target // => [|]; last by rewrite /s /m subrr mulr0 oppr0.
have x0 : 0 <= e (- alpha) by apply/ltW/exp_gt0.
have S0 : 0 < \sum_k e (s k) := sum_exp_gt0 expo s c.
have T0 : 0 < theta (e (- alpha)) N ^+ d by rewrite exprn_gt0 ?theta_gt0.
rewrite lerD2l lerN2 lef_pV2 ?posrE //.
have -> : theta (e (- alpha)) N ^+ d = \prod_(i < d) theta (e (- alpha)) N.
  by rewrite prodr_const card_ord.
apply: le_trans (sum_le_theta posI (fun=> x0) near); apply: ler_sum => k _.
have -> : \prod_i e (- alpha) ^+ (`|(pos k - pos c)%R 0%R i| ^ 2)
    = e (- alpha) ^+ sqnorm (pos k - pos c) by rewrite expr_sum.
rewrite -exp_natl // exp_le // /s mulrN lerN2 [leLHS]mulrC ler_pM2l // lerBrDl /m -natrD ler_nat.
by rewrite cE clamp_angle.
Qed.
End Clamp.

(** ** Zeros: a sink of score -c alpha *)
Section Sink.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (c : R).
Variables (K : finType) (n : K -> nat).
Let s alpha k : R := - (alpha * (n k)%:R).

Lemma share_le (L M eps : R) : 0 < L -> 0 <= M -> M <= eps * L -> M / (L + M) <= eps.
Proof.
move=> L0 M0 ML; have LM : 0 < L + M by rewrite ltr_wpDr.
have eps0 : 0 <= eps by rewrite -(pmulr_lge0 _ L0) (le_trans M0).
by rewrite ler_pdivrMr // mulrDr (le_trans ML) // lerDl mulr_ge0.
Qed.

Lemma share_ge (L M : R) : 0 < L -> L <= M -> 2%:R^-1 <= M / (L + M).
Proof.
move=> L0 LM; have M0 := lt_le_trans L0 LM; have T0 : 0 < L + M by rewrite addr_gt0.
rewrite ler_pdivlMr // mulrC ler_pdivrMr ?ltr0n // mulr_natr mulr2n.
by rewrite lerD2r.
Qed.

(** Exponentials of at least g alpha below are together small. *)
Lemma exponentials_small (g eps : R) : 0 < g -> 0 < eps ->
  exists2 a0, 0 <= a0 & forall alpha, a0 <= alpha -> (#|K|.+1)%:R * e (- (alpha * g)) <= eps.
Proof.
move=> g0 eps0; exists (#|K|.+1%:R / (eps * g)) => [|alpha big].
  by rewrite divr_ge0 ?ler0n // mulr_ge0 // ltW.
have a0 : 0 <= alpha by apply: le_trans big; rewrite divr_ge0 ?ler0n // mulr_ge0 // ltW.
have ag : 0 <= alpha * g by rewrite mulr_ge0 // ltW.
apply: le_trans (ler_wpM2l _ (expN_le expo ag)) _; first by rewrite ler0n.
have pos : 0 < 1 + alpha * g by rewrite ltr_wpDr ?ltr01.
rewrite ler_pdivrMr //; apply: (@le_trans _ _ (eps * (alpha * g))); last first.
  by rewrite ler_wpM2l ?(ltW eps0) // lerDr ler01.
by rewrite mulrCA -ler_pdivrMr ?mulr_gt0.
Qed.

Lemma sum_small (P : pred K) (m : R) (f : K -> R) : 0 <= m ->
  (forall k, P k -> f k <= m) -> \sum_(k | P k) f k <= #|K|%:R * m.
Proof.
move=> m0 fm; apply: le_trans (ler_sum _ fm) _.
by rewrite sumr_const mulr_natl ler_wpMn2l // max_card.
Qed.

(** All else in a row at most e^-(alpha g), g > 0: all else vanishes. *)
Lemma vanishes (P : pred K) (f : R -> K -> R) (g : R) : 0 < g ->
  (forall alpha k, 0 <= alpha -> 0 <= f alpha k) ->
  (forall alpha k, 0 <= alpha -> P k -> f alpha k <= e (- (alpha * g))) ->
  forall eps, 0 < eps -> exists a0, forall alpha, a0 <= alpha ->
  0 <= alpha /\ \sum_(k | P k) f alpha k + e (- (alpha * g)) <= eps.
Proof.
move=> g0 f0 fg eps eps0; have [a0 a00 small] := exponentials_small g0 eps0.
exists a0 => alpha big; have alpha0 := le_trans a00 big; split=> //.
apply: le_trans _ (small alpha big); rewrite mulrSr mulrDl mul1r lerD2r.
by apply: sum_small => [|k Pk]; [apply/ltW/exp_gt0 | apply: fg].
Qed.

(** On the grid: a pixel at the target, all others at least 1 away in squared distance. *)
Lemma sink_on_grid (t : K) : n t = 0%N -> (forall k, k != t -> (0 < n k)%N) ->
  (forall eps, 0 < eps -> exists a0, forall alpha, a0 <= alpha ->
     1 - softmax_with_sink e (- (c * alpha)) (s alpha) t <= eps) <-> 0 < c.
Proof.
move=> nt off; have st alpha : e (s alpha t) = 1 by rewrite /s nt mulr0 oppr0 exp0.
pose M alpha := \sum_(k | k != t) e (s alpha k) + e (- (c * alpha)).
have M0 alpha : 0 < M alpha.
  by rewrite ltr_wpDl ?exp_gt0 // sumr_ge0 // => k _; apply/ltW/exp_gt0.
have E alpha : 1 - softmax_with_sink e (- (c * alpha)) (s alpha) t = M alpha / (1 + M alpha).
  rewrite /softmax_with_sink (bigD1 t) //= st -addrA -/(M alpha).
  have := M0 alpha; move: (M alpha) => m m0; field; rewrite gt_eqF // addr_gt0 ?ltr01 //.
split=> [limit|c0 eps eps0].
  rewrite ltNge; apply/negP => c0; have [|a0 close] := limit 3%:R^-1; first by rewrite invr_gt0 ltr0n.
  pose alpha := Num.max a0 0; have alpha0 : 0 <= alpha by rewrite le_max lexx orbT.
  have := close alpha; rewrite le_max lexx E => /(_ isT); apply/negP; rewrite -ltNge.
  apply: lt_le_trans (share_ge ltr01 _); first by rewrite ltf_pV2 ?posrE ?ltr0n ?ltr_nat.
  apply: (@le_trans _ _ (e (- (c * alpha)))).
    by rewrite -(exp0 expo) exp_le // oppr_ge0 mulr_le0_ge0.
  by rewrite lerDr sumr_ge0 // => k _; apply/ltW/exp_gt0.
have g0 : 0 < Num.min 1 c by rewrite lt_min ltr01.
have [] := @vanishes (fun k => k != t) (fun alpha k => e (s alpha k)) (Num.min 1 c) g0 _ _ eps eps0.
- by move=> alpha k _; apply/ltW/exp_gt0.
- move=> alpha k alpha0 kt; rewrite exp_le // lerN2 ler_wpM2l //.
  by rewrite ge_min (_ : 1 <= (n k)%:R) // ler1n off.
move=> a0 small; exists a0 => alpha big; have [alpha0 le_eps] := small alpha big.
rewrite E; apply: share_le; rewrite ?ltr01 ?(ltW (M0 alpha)) // mulr1.
apply: le_trans le_eps; rewrite lerD2l exp_le // lerN2 [leRHS]mulrC ler_wpM2l //.
by rewrite ge_min lexx orbT.
Qed.

(** Off the grid: the nearest pixel at the squared distance mu. *)
Lemma sink_off_grid (mu : nat) : (exists k, n k = mu) -> (forall k, (mu <= n k)%N) ->
  (forall eps, 0 < eps -> exists a0, forall alpha, a0 <= alpha ->
     1 - e (- (c * alpha)) / (\sum_k e (s alpha k) + e (- (c * alpha))) <= eps) <-> c < mu%:R.
Proof.
move=> [k0 n0] least; pose S alpha := \sum_k e (s alpha k).
have S0 alpha : 0 < S alpha := sum_exp_gt0 expo (s alpha) k0.
pose L alpha := e (- (c * alpha)); have L0 alpha : 0 < L alpha := exp_gt0 expo _.
have E alpha : 1 - L alpha / (S alpha + L alpha) = S alpha / (L alpha + S alpha).
  have := S0 alpha; have := L0 alpha; move: (S alpha) (L alpha) => y z z0 y0.
  by field; rewrite !gt_eqF // addr_gt0.
split=> [limit|cmu eps eps0].
  rewrite ltNge; apply/negP => muc; have [|a0 close] := limit 3%:R^-1; first by rewrite invr_gt0 ltr0n.
  pose alpha := Num.max a0 0; have alpha0 : 0 <= alpha by rewrite le_max lexx orbT.
  have := close alpha; rewrite le_max lexx => /(_ isT); rewrite -/(S alpha) -/(L alpha) E.
  apply/negP; rewrite -ltNge.
  apply: lt_le_trans (share_ge (L0 alpha) _); first by rewrite ltf_pV2 ?posrE ?ltr0n ?ltr_nat.
  apply: (@le_trans _ _ (e (s alpha k0))).
    by rewrite /L /s exp_le // lerN2 n0 mulrC ler_wpM2r.
  by rewrite /S (bigD1 k0) //= lerDl sumr_ge0 // => k _; apply/ltW/exp_gt0.
have g0 : 0 < mu%:R - c by rewrite subr_gt0.
have [] := @vanishes predT (fun alpha k => e (s alpha k + c * alpha)) _ g0 _ _ eps eps0.
- by move=> alpha k _; apply/ltW/exp_gt0.
- move=> alpha k alpha0 _; rewrite exp_le // /s mulrBr opprB [c * _]mulrC addrC lerD2l lerN2.
  by rewrite ler_wpM2l // ler_nat.
move=> a0 small; exists a0 => alpha big; have [alpha0 le_eps] := small alpha big.
rewrite -/(S alpha) -/(L alpha) E; apply: share_le; rewrite ?(ltW (S0 alpha)) //.
have -> : S alpha = (\sum_k e (s alpha k + c * alpha)) * L alpha.
  rewrite /S mulr_suml; apply: eq_bigr => k _.
  by rewrite /L -expo.1 -addrA subrr addr0.
rewrite ler_wpM2r ?(ltW (L0 alpha)) // (le_trans _ le_eps) // lerDl.
exact/ltW/exp_gt0.
Qed.
End Sink.

(** ** Necessity: rows that sum to one *)
Section Necessity.
Variables (R : ringType) (G : zmodType) (Din Dh Dout Nh N : nat) (K : finType) (pos : K -> G).

Lemma constants_to_constants (a a' : 'I_Nh -> K -> R) (Wval : 'I_Nh -> 'M[R]_(Din, Dh))
    (Wout : 'M[R]_(Nh * Dh, Dout)) b (X : image R G Din) x :
  (forall h, \sum_k a h k = 1) -> (forall h, \sum_k a' h k = 1) -> (forall k, X (pos k) = x) ->
  multihead pos a Wval Wout b X = multihead pos a' Wval Wout b X.
Proof.
move=> a1 a1' Xx; rewrite !multiheadE; congr +%R; apply: eq_bigr => h _; congr mulmx.
have sees (w : K -> R) : \sum_k w k = 1 -> attend pos w X = x.
  by move=> w1; rewrite /attend; under eq_bigr do rewrite Xx; rewrite -scaler_suml w1 scale1r.
by rewrite !sees.
Qed.

Lemma missing_taps (offset : 'I_N -> G) (W : 'I_N -> 'M[R]_(Din, Dout)) b (x : 'rV[R]_Din)
    (on : pred G) q q' : (forall t, on (q + offset t)) ->
  let X p := if on p then x else 0 in
  convolution offset W b X q - convolution offset W b X q'
  = x *m \sum_(t | ~~ on (q' + offset t)) W t.
Proof.
move=> seen X; rewrite /convolution opprD addrACA subrr add0r -sumrB mulmx_sumr [RHS]big_mkcond /=.
by apply: eq_bigr => t _; rewrite /X seen; case: (on _); rewrite ?subrr ?mul0mx ?subr0.
Qed.
End Necessity.

(** Squared distances between distinct positions are at least 1. *)
Lemma sqnorm_gt0 d (p : position d) : p != 0 -> (0 < sqnorm p)%N.
Proof.
move=> p0; rewrite lt0n; apply: contra p0; rewrite /sqnorm sum_nat_eq0 => /forallP zero.
apply/eqP/rowP => i; have := zero i; rewrite mxE expn_eq0 absz_eq0 andbT => /eqP //.
Qed.

(** ** Ties and contradictions *)
Section Half.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e) (K : finType).

(** A key that another one equals or exceeds has at most half of the attention. *)
Lemma at_most_half (s : K -> R) k j : j != k -> s k <= s j -> softmax e s k <= 2%:R^-1.
Proof.
move=> jk kj; have S0 := sum_exp_gt0 expo s k.
rewrite /softmax ler_pdivrMr // mulrC ler_pdivlMr ?ltr0n // mulr_natr mulr2n.
rewrite (bigD1 k) //= lerD2l (bigD1 j) //= (le_trans (exp_le expo kj)) // lerDl.
by apply: sumr_ge0 => i _; apply/ltW/exp_gt0.
Qed.
End Half.

Lemma precision_tie (R : realFieldType) (e : R -> R) (expo : exponential e) (alpha : R) :
  let form (y z : int) := (y ^+ 2 + y * z + z ^+ 2)%:~R : R in
  let s (k : 'I_5 * 'I_5) := - (alpha * form (k.1%:Z + 1) (k.2%:Z - 2)) in
  softmax e s (inord 0, inord 2) <= 2%:R^-1.
Proof.
cbv zeta; apply: (at_most_half expo (j := (inord 0, inord 1))).
  by apply/eqP => -[/(congr1 (@nat_of_ord 5))]; rewrite !inordK.
by rewrite /= !inordK.
Qed.

Lemma no_reflection (R : realFieldType) (e : R -> R) (expo : exponential e) n r (f : int -> R) :
  (2 <= r)%N -> (r.+2 <= n.+1)%N ->
  softmax e (fun k : 'I_n.+1 => f k%:Z) (inord r) <= 2%:R^-1 \/
  softmax e (fun k : 'I_n.+1 => f (k%:Z - 1)) (inord r.-1) <= 2%:R^-1.
Proof.
move=> r2 rn; have apart i j : (i < n.+1)%N -> (j < n.+1)%N -> i != j ->
    (inord i : 'I_n.+1) != inord j.
  by move=> lti ltj; apply: contra => /eqP/(congr1 val)/=; rewrite !inordK // => ->.
have [le|/ltW le] := leP (f r%:Z) (f (r%:Z - 2)); [left | right].
  apply: (at_most_half expo (j := inord (r - 2))); first by apply: apart; lia.
  by rewrite !inordK -?subzn //; lia.
apply: (at_most_half expo (j := inord r.+1)); first by apply: apart; lia.
rewrite !inordK; try lia.
have -> : r.+1%:Z - 1 = r%:Z by lia.
by have -> : r.-1%:Z - 1 = r%:Z - 2 by lia.
Qed.

(** Which shifts have a score whose highest key is the mirrored pixel |q - r|, at every query q. *)
Lemma reflection_scores (R : realFieldType) (n r : nat) : (r <= n)%N ->
  (exists f : int -> R, forall q k : 'I_n.+1, k != `|q%:Z - r%:Z|%N :> nat ->
     f (k%:Z - q%:Z) < f (`|q%:Z - r%:Z|%N%:Z - q%:Z))
  <-> (r <= 1)%N \/ (n <= 2)%N.
Proof.
move=> rn; split=> [[f high] | few].
  apply/orP; rewrite leqNgt -implybE; apply/implyP => r2; rewrite leqNgt; apply/negP => n3.
  have at_query (q k : nat) : (q <= n)%N -> (k <= n)%N -> k != `|q%:Z - r%:Z|%N ->
      f (k%:Z - q%:Z) < f (`|q%:Z - r%:Z|%N%:Z - q%:Z).
    by move=> qn kn; have := high (Ordinal (qn : (q < n.+1)%N)) (Ordinal (kn : (k < n.+1)%N)).
  have [lt|ge] := ltnP r n.
    have := at_query 0%N (r - 2)%N isT; have := at_query 1%N r.+1.
    have -> : `|0%:Z - r%:Z|%N%:Z - 0%:Z = r%:Z by lia.
    have -> : (r - 2)%N%:Z - 0%:Z = r%:Z - 2 by lia.
    have -> : `|1%:Z - r%:Z|%N%:Z - 1%:Z = r%:Z - 2 by lia.
    have -> : r.+1%:Z - 1%:Z = r%:Z by lia.
    move=> one two; have a : f r%:Z < f (r%:Z - 2) by apply: one; lia.
    have b : f (r%:Z - 2) < f r%:Z by apply: two; lia.
    by have := lt_trans a b; rewrite ltxx.
  have := at_query 1%N (r - 3)%N; have := at_query 2%N r.
  have -> : `|2%:Z - r%:Z|%N%:Z - 2%:Z = r%:Z - 4 by lia.
  have -> : r%:Z - 2%:Z = r%:Z - 2 by lia.
  have -> : `|1%:Z - r%:Z|%N%:Z - 1%:Z = r%:Z - 2 by lia.
  have -> : (r - 3)%N%:Z - 1%:Z = r%:Z - 4 by lia.
  move=> one two; have a : f (r%:Z - 2) < f (r%:Z - 4) by apply: one; lia.
  have b : f (r%:Z - 4) < f (r%:Z - 2) by apply: two; lia.
  by have := lt_trans a b; rewrite ltxx.
pose f (z : int) : nat :=
  if r == 0%N then nat_of_bool (z == 0) else
  if r == 1%N then if z == -1 then 2%N else nat_of_bool (z == 1) else
  if (z == 2) || (z == -2) then 2%N else nat_of_bool (z == 0).
exists (fun z => (f z)%:R) => q k; rewrite ltr_nat.
have := ltn_ord q; have := ltn_ord k; move: (nat_of_ord q) (nat_of_ord k) => {}q {}k kn qn km.
rewrite /f; case: (eqVneq r 0%N) => [r0|r0]; first by case: eqP; case: eqP; lia.
case: (eqVneq r 1%N) => [r1|r1]; first by do !case: eqP => ?; lia.
have -> : (`|q%:Z - r%:Z|%N%:Z - q%:Z == 0) = (q == 1%N) by lia.
case: (eqVneq q 1%N) => [q1|q1]; first by do !case: eqP => ? /=; lia.
have -> : (`|q%:Z - r%:Z|%N%:Z - q%:Z == 2) || (`|q%:Z - r%:Z|%N%:Z - q%:Z == -2) by lia.
have -> : (k%:Z - q%:Z == 2) || (k%:Z - q%:Z == -2) = false by lia.
by case: eqP.
Qed.

(** A mixed term: one pixel aside from the clamp, the form is no larger as soon as the target is far
    enough beyond the edge. *)
Lemma precision_tie_any (R : archiFieldType) (e : R -> R) (expo : exponential e) (alpha a b c : R) :
  0 <= alpha -> b != 0 -> exists (j : nat) (m : 'I_2),
  let form (y z : R) := a * y ^+ 2 + 2%:R * b * y * z + c * z ^+ 2 in
  softmax e (fun k : 'I_2 => - (alpha * form j%:R (k%:R - m%:R))) m <= 2%:R^-1.
Proof.
move=> alpha0 b0; have nb : 0 < 2%:R * `|b| by rewrite mulr_gt0 ?ltr0n // normr_gt0.
have q0 : 0 <= `|c| / (2%:R * `|b|) by rewrite divr_ge0 // ltW.
have far := archi_boundP q0; set j := Num.bound _ in far; exists j.
have {}far : c <= 2%:R * `|b| * j%:R.
  apply: (le_trans (ler_norm c)); rewrite mulrC; move: far.
  by rewrite ltr_pdivrMr // => /ltW.
have tie (m k : 'I_2) : k != m -> 2%:R * b * j%:R * (k%:R - m%:R) + c * (k%:R - m%:R) ^+ 2 <= 0 ->
    softmax e (fun k : 'I_2 => - (alpha * (a * j%:R ^+ 2 + 2%:R * b * j%:R * (k%:R - m%:R)
      + c * (k%:R - m%:R) ^+ 2))) m <= 2%:R^-1.
  move=> km le; apply: (at_most_half expo km); rewrite lerN2 ler_wpM2l // subrr.
  by rewrite expr0n !mulr0 !addr0 -addrA -lerBrDl subrr.
have [pos|neg] := ltP 0 b; [exists (Ordinal (ltnSn 1)) | exists ord0] => form; rewrite /form.
  apply: (tie _ ord0) => //=; rewrite sub0r sqrrN expr1n !mulr1 mulrN1 addrC lerBlDr add0r.
  by move: far; rewrite gtr0_norm.
apply: (tie _ (Ordinal (ltnSn 1))) => //=; rewrite subr0 expr1n !mulr1 addrC -lerBrDr sub0r.
by move: far; rewrite ler0_norm // mulrN mulNr.
Qed.
