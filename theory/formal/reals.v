(** * The real numbers: the exponential, the strict leak and its supremum, the sharpness as a
    logarithm (T2, T3) *)
From mathcomp Require Import all_ssreflect all_algebra boolp classical_sets reals sequences exp ring.
From Formal Require Import names setting setting_reals exponential leak theorem1 borders sinks.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

(** The hypotheses of the other files can be met. *)
Lemma expR_exponential (R : realType) : exponential (@expR R).
Proof. by split=> [x y | x x0]; [exact: expRD | exact: expR_ge1Dx]. Qed.

Lemma real_power (R : realType) (r : R) : 0 < r ->
  power (fun x => if 0 < x then expR (r * ln x) else 0).
Proof.
move=> r0; split=> [||x y x0 xy]; rewrite ?ltxx ?ltr01 ?ln1 ?mulr0 ?expR0 //.
rewrite (le_lt_trans x0 xy); case: ifP => [x1|_]; last exact: expR_gt0.
by rewrite ltr_expR ltr_pM2l // ltr_ln ?posrE // (lt_trans x1).
Qed.

Section Theta.
Variables (R : realType) (x : R) (x0 : 0 < x) (x1 : x < 1).

Lemma theta_has_sup : has_sup [set theta x N | N in [set: nat]].
Proof.
split; first by exists (theta x 0), 0%N.
by exists (1 + 2%:R * (x / (1 - x ^+ 3))) => _ [N _ <-]; apply: theta_le => //; apply: ltW.
Qed.

Lemma theta_le_series N : theta x N <= theta_series x.
Proof. by apply: sup_ub; [exact: theta_has_sup.2 | exists N]. Qed.

(** Every partial sum is exceeded by the next. *)
Lemma theta_lt_series N : theta x N < theta_series x.
Proof.
apply: lt_le_trans (theta_le_series N.+1).
by rewrite /theta big_ord_recr /= ltrD2l ltr_pM2l ?ltr0n // ltrDl exprn_gt0.
Qed.

Lemma theta_series_le : theta_series x <= 1 + 2%:R * (x / (1 - x ^+ 3)).
Proof.
apply: sup_le_ub; first exact: theta_has_sup.1.
by move=> _ [N _ <-]; apply: theta_le => //; apply: ltW.
Qed.

Lemma theta_series_gt1 : 1 < theta_series x.
Proof. exact: le_lt_trans (theta_ge1 (ltW x0) 0) (theta_lt_series 0). Qed.

Lemma theta_near eps : 0 < eps -> exists N, theta_series x - eps < theta x N.
Proof. by move=> eps0; have [_ [N _ <-]] := sup_adherent eps0 theta_has_sup; exists N. Qed.

Lemma series_leak_le d :
  1 - (theta_series x ^+ d)^-1 <= d%:R * (2%:R * (x / (1 - x ^+ 3))).
Proof.
have y0 : 0 <= 2%:R * (x / (1 - x ^+ 3)).
  by rewrite mulr_ge0 ?ler0n // divr_ge0 ?subr_ge0 ?exprn_ile1 ?(ltW x0) ?(ltW x1).
apply: le_trans (power_leak d y0); rewrite lerD2l lerN2.
have t0 := lt_trans ltr01 theta_series_gt1; have t1 := lt_le_trans t0 theta_series_le.
by rewrite lef_pV2 ?posrE ?exprn_gt0 // ler_expn2r ?nnegrE ?theta_series_le // ltW.
Qed.
End Theta.

(** b^-d - a^-d <= d (a - b), for 1 <= b <= a. *)
Lemma inverse_powers (R : realFieldType) (a b : R) d : 1 <= b -> b <= a ->
  (b ^+ d)^-1 - (a ^+ d)^-1 <= d%:R * (a - b).
Proof.
move=> b1 ba; have b0 := lt_le_trans ltr01 b1; have a0 := lt_le_trans b0 ba.
have a1 := le_trans b1 ba; rewrite -!exprVn.
have bV1 : b^-1 <= 1 by rewrite invf_le1.
have aV1 : a^-1 <= 1 by rewrite invf_le1.
have bV0 : 0 <= b^-1 by rewrite invr_ge0 ltW.
have aV0 : 0 <= a^-1 by rewrite invr_ge0 ltW.
have ab0 : 0 <= a - b by rewrite subr_ge0.
have baV : b^-1 - a^-1 <= a - b.
  have -> : b^-1 - a^-1 = (a - b) * (b^-1 * a^-1) by field; rewrite !gt_eqF.
  by rewrite ler_piMr // mulr_ile1.
have baV0 : 0 <= b^-1 - a^-1 by rewrite subr_ge0 lef_pV2.
elim: d => [|d IH]; first by rewrite !expr0 subrr mul0r.
have -> : b^-1 ^+ d.+1 - a^-1 ^+ d.+1 = b^-1 * (b^-1 ^+ d - a^-1 ^+ d) + a^-1 ^+ d * (b^-1 - a^-1).
  by rewrite !exprS; move: (b^-1) (a^-1) (_ ^+ d) (_ ^+ d) => *; ring.
have -> : d.+1%:R * (a - b) = d%:R * (a - b) + (a - b) by rewrite mulrSr mulrDl mul1r.
apply: lerD.
  apply: le_trans IH; apply: ler_piMl => //; rewrite subr_ge0.
  by rewrite ler_expn2r ?nnegrE // lef_pV2.
by apply: le_trans baV; apply: ler_piMl => //; apply: exprn_ile1.
Qed.

(** And with the same z >= 0 added to both. *)
Lemma sum_inverse_powers (R : realFieldType) (a b z : R) d : 1 <= b -> b <= a -> 0 <= z ->
  (b ^+ d + z)^-1 - (a ^+ d + z)^-1 <= d%:R * (a - b).
Proof.
move=> b1 ba z0; apply: le_trans (inverse_powers d b1 ba).
have b0 : 0 < b ^+ d by rewrite exprn_gt0 // (lt_le_trans ltr01).
have ab : b ^+ d <= a ^+ d by rewrite ler_expn2r ?nnegrE ?(le_trans ler01) // (le_trans b1).
have a0 := lt_le_trans b0 ab; move: (b ^+ d) (a ^+ d) b0 a0 ab => p q p0 q0 pq.
have pz : 0 < p + z by rewrite ltr_wpDr. have qz : 0 < q + z by rewrite ltr_wpDr.
have -> : (p + z)^-1 - (q + z)^-1 = (q - p) / ((p + z) * (q + z)) by field; rewrite !gt_eqF.
have -> : p^-1 - q^-1 = (q - p) / (p * q) by field; rewrite !gt_eqF.
apply: ler_wpM2l; first by rewrite subr_ge0.
by rewrite lef_pV2 ?posrE ?mulr_gt0 // ler_pM ?lerDl // ltW.
Qed.

(** Strictly between theta_N^-d and theta^-d, for the d >= 1 axes of a grid. *)
Lemma series_power_lt (R : realType) (x : R) d N : 0 < x -> x < 1 -> (0 < d)%N ->
  1 - (theta x N ^+ d)^-1 < 1 - (theta_series x ^+ d)^-1.
Proof.
move=> x0 x1 d0; have t0 := theta_gt0 (ltW x0) N; have ts := theta_lt_series x0 x1 N.
rewrite ltrD2l ltrN2 ltf_pV2 ?posrE ?exprn_gt0 // ?(lt_trans t0 ts) //.
by rewrite ltr_pXn2r ?nnegrE ?(ltW t0) // ltW // (lt_trans t0 ts).
Qed.

Section Leak.
Variables (R : realType) (d : nat) (alpha : R) (alpha0 : 0 < alpha).
Let x := expR (- alpha).
Let x0 : 0 < x := expR_gt0 _.
Let x1 : x < 1 := exp_neg_lt1 (expR_exponential R) alpha0.
Let sup_leak := 1 - (theta_series x ^+ d)^-1.

Lemma leak_lt (K : finType) (pos : K -> position d) q Delta t : (0 < d)%N ->
  injective pos -> pos t = q + Delta -> 1 - quadratic_weights expR alpha pos q Delta t < sup_leak.
Proof.
move=> d0 posI tE; have [N near] := reach pos t.
apply: le_lt_trans (quadratic_leak (expR_exponential R) posI alpha tE near) _.
exact: series_power_lt.
Qed.

Lemma clamp_leak_lt (K : finType) (pos : K -> position d) (lower upper q Delta : position d) c :
  (0 < d)%N ->
  injective pos -> (forall k i, lower 0 i <= pos k 0 i <= upper 0 i) ->
  pos c = clamp lower upper (q + Delta) ->
  1 - quadratic_weights expR alpha pos q Delta c < sup_leak.
Proof.
move=> d0 posI inside cE; have [N near] := reach pos c.
have box i : lower 0 i <= upper 0 i by case/andP: (inside c i) => /le_trans; apply.
apply: le_lt_trans (clamp_leak box (expR_exponential R) alpha0 posI inside cE near) _.
exact: series_power_lt.
Qed.

Lemma leak_supremum q Delta eps : 0 < eps ->
  exists (K : finType) (pos : K -> position d) (t : K),
  [/\ injective pos, pos t = q + Delta
    & sup_leak - eps < 1 - quadratic_weights expR alpha pos q Delta t].
Proof.
move=> eps0; have [|N nearby] := @theta_near _ x x0 x1 (eps / d.+1%:R).
  by rewrite divr_gt0 // ltr0n.
have [t tE leak] := cube_leak (expR_exponential R) N alpha q Delta.
exists _, (cube (q + Delta)), t; split=> //; first exact: cube_inj.
rewrite leak -/x /sup_leak; set a := theta_series x in nearby *; set b := theta x N in nearby *.
have ba : b <= a by apply: theta_le_series.
have gap : (b ^+ d)^-1 - (a ^+ d)^-1 < eps.
  apply: le_lt_trans (inverse_powers d (theta_ge1 (ltW x0) N) ba) _.
  apply: (@le_lt_trans _ _ (d.+1%:R * (a - b))); first by rewrite ler_wpM2r ?subr_ge0 ?ler_nat.
  by rewrite mulrC -ltr_pdivlMr ?ltr0n // ltrBlDl -ltrBlDr.
by rewrite ltrBlDr -addrA ltrD2l -ltrBlDl opprK addrC.
Qed.

(** With a sink. *)
Section Sink.
Variable c : R.
Let z := expR (- (c * alpha)).
Let z0 : 0 < z := expR_gt0 _.
Let V : R := (theta_series x - 1) / 2%:R * theta_series x ^+ d.-1.

Lemma theta_power_lt N m : (0 < m)%N -> theta x N ^+ m < theta_series x ^+ m.
Proof.
move=> m0; have t0 := theta_gt0 (ltW x0) N; have lt := theta_lt_series x0 x1 N.
by rewrite ltr_pXn2r ?nnegrE ?(ltW t0) // ltW // (lt_trans t0).
Qed.

Lemma sink_leak_lt (K : finType) (pos : K -> position d) t : (0 < d)%N -> injective pos ->
  1 - softmax_with_sink expR (- (c * alpha)) (fun k => - (alpha * (sqnorm (pos k - pos t))%:R)) t
  < 1 - (theta_series x ^+ d + z)^-1.
Proof.
move=> d0 posI; have [N near] := reach pos t.
apply: le_lt_trans (on_grid_leak (expR_exponential R) c
  (on_grid_sum (expR_exponential R) alpha posI near)) _.
have t0 : 0 < theta x N ^+ d + z by rewrite addr_gt0 // exprn_gt0 // theta_gt0 // ltW.
have lt : theta x N ^+ d + z < theta_series x ^+ d + z by rewrite ltrD2r theta_power_lt.
by rewrite ltrD2l ltrN2 ltf_pV2 ?posrE // (lt_trans t0).
Qed.

Lemma sink_leak_supremum (t : position d) eps : 0 < eps ->
  exists (K : finType) (pos : K -> position d) (k : K), [/\ injective pos, pos k = t
    & 1 - (theta_series x ^+ d + z)^-1 - eps
      < 1 - softmax_with_sink expR (- (c * alpha))
              (fun j => - (alpha * (sqnorm (pos j - pos k))%:R)) k].
Proof.
move=> eps0; have [|N nearby] := @theta_near _ x x0 x1 (eps / d.+1%:R).
  by rewrite divr_gt0 // ltr0n.
have [k kE _] := cube_leak (expR_exponential R) N alpha t 0; rewrite addr0 in kE.
exists _, (cube t), k; split=> //; first exact: cube_inj.
have -> : softmax_with_sink expR (- (c * alpha))
    (fun j => - (alpha * (sqnorm (cube t j - cube t k))%:R)) k = (theta x N ^+ d + z)^-1.
  rewrite /softmax_with_sink subrr sqnorm0 mulr0 oppr0 expR0 mul1r kE; congr (_ + _)^-1.
  exact: (cube_sum (expR_exponential R) alpha N t).
set a := theta_series x in nearby *; set b := theta x N in nearby *.
have ba : b <= a by apply: theta_le_series.
have b1 : 1 <= b := theta_ge1 (ltW x0) N.
have gap : (b ^+ d + z)^-1 - (a ^+ d + z)^-1 < eps.
  apply: le_lt_trans (sum_inverse_powers d b1 ba (ltW z0)) _.
  apply: (@le_lt_trans _ _ (d.+1%:R * (a - b))); first by rewrite ler_wpM2r ?subr_ge0 ?ler_nat.
  by rewrite mulrC -ltr_pdivlMr ?ltr0n // ltrBlDl -ltrBlDr.
by rewrite ltrBlDr -addrA ltrD2l -ltrBlDl opprK addrC.
Qed.

Lemma sink_off_lt (K : finType) (pos : K -> position d) (t : position d) (i : 'I_d) (right : bool) :
  injective pos -> (forall k, side right ((pos k - t) 0 i)) ->
  1 - z / (\sum_k expR (- (alpha * (sqnorm (pos k - t))%:R)) + z)
  < expR (c * alpha) * V / (1 + expR (c * alpha) * V).
Proof.
move=> posI off.
pose N := (\max_k \max_i `|(pos k - t)%R 0%R i|)%N.
have near : within pos t N.
  move=> k j; apply: leq_trans (leq_bigmax k).
  exact: (leq_bigmax (F := fun i => `|(pos k - t)%R 0%R i|%N) j).
have d0 : (0 < d)%N by apply: leq_ltn_trans (ltn_ord i).
have half : \sum_(j < N + N.+1) (side right (j%:Z - N%:Z))%:R * x ^+ (`|j%:Z - N%:Z| ^ 2)
    <= (theta x N - 1) / 2%:R by rewrite half_axis lexx.
apply: le_lt_trans (off_grid_leak (expR_exponential R) c
  (off_grid_sum (expR_exponential R) posI off near half)) _.
have y0 := expR_gt0 (c * alpha); move: (expR _) y0 => y y0.
have lt : (theta x N - 1) / 2%:R * theta x N ^+ d.-1 < V.
  have t1 := theta_ge1 (ltW x0) N; have ts := theta_lt_series x0 x1 N.
  apply: (@lt_le_trans _ _ ((theta_series x - 1) / 2%:R * theta x N ^+ d.-1)).
    by rewrite ltr_pM2r ?exprn_gt0 ?theta_gt0 ?(ltW x0) // ltr_pM2r ?invr_gt0 ?ltr0n // ltrD2r.
  apply: ler_wpM2l; first by rewrite divr_ge0 ?ler0n // subr_ge0 ltW // (le_lt_trans t1).
  by rewrite ler_expn2r ?nnegrE ?(le_trans ler01) // ltW // (le_lt_trans t1).
have V0 : 0 <= (theta x N - 1) / 2%:R * theta x N ^+ d.-1.
  by rewrite mulr_ge0 ?divr_ge0 ?ler0n ?subr_ge0 ?theta_ge1 ?exprn_ge0 ?(ltW x0) // ltW // theta_gt0 // ltW.
move: (_ * _) lt V0 => W lt W0.
have share (u : R) : 0 <= u -> u / (1 + u) = 1 - (1 + u)^-1.
  by move=> u0; field; rewrite gt_eqF // ltr_wpDr ?ltr01.
have yV : y * W < y * V by rewrite ltr_pM2l.
have yW : 0 <= y * W by rewrite mulr_ge0 // ltW.
rewrite !share //; last exact: le_trans (ltW yV).
rewrite ltrD2l ltrN2 ltf_pV2 ?posrE ?ltrD2l // ltr_wpDr ?ltr01 //; exact: le_trans (ltW yV).
Qed.
End Sink.
End Leak.

Lemma kernel_of_head (R : realType) (G : finType) (kappa : G -> R) :
  (forall delta, 0 < kappa delta) -> \sum_delta kappa delta = 1 ->
  softmax expR (fun delta => ln (kappa delta)) =1 kappa.
Proof.
move=> pos sum1 delta; rewrite /softmax lnK ?posrE //.
by under eq_bigr do rewrite lnK ?posrE //; rewrite sum1 divr1.
Qed.

Section Sharpness.
Variables (R : realType) (d Din Dh Dout N : nat) (offset : 'I_N -> position d).
Variables (W : 'I_N -> 'M[R]_(Din, Dout)) (Wval : 'I_N -> 'M[R]_(Din, Dh)).
Variables (Wout : 'M[R]_(N * Dh, Dout)) (b : 'rV[R]_Dout).
Hypothesis product : forall h, Wval h *m block Wout h = W h.
Variables (K : finType) (pos : K -> position d) (X : position d -> 'rV[R]_Din) (q : position d).
Hypotheses (posI : injective pos) (seen : sees_window pos offset q) (d0 : (0 < d)%N).
Variable range : 'I_Din -> R.
Hypothesis rangeP : forall c k k', `|X (pos k) 0 c - X (pos k') 0 c| <= range c.

Lemma theta_error alpha o : 0 < alpha ->
  `|self_attention expR (@encoding R d) (quadratic_layer alpha offset Wval Wout b) pos X q 0 o
    - convolution offset W b X q 0 o|
  <= (1 - (theta_series (expR (- alpha)) ^+ d)^-1) * \sum_h \sum_c `|W h c o| * range c.
Proof.
move=> alpha0; apply: (quadratic_layer_error (expR_exponential R) b o product seen rangeP) => h t tE.
exact/ltW/leak_lt.
Qed.

Lemma logarithm_error V eta o : 0 < eta -> 0 < V ->
  \sum_h \sum_c `|W h c o| * range c <= V ->
  `|self_attention expR (@encoding R d)
      (quadratic_layer (ln (1 + 2%:R * d%:R * V / eta)) offset Wval Wout b) pos X q 0 o
    - convolution offset W b X q 0 o| < eta.
Proof.
move=> eta0 V0 VP; set w := 2%:R * d%:R * V / eta; set alpha := ln (1 + w).
have d0R : 0 < d%:R :> R by rewrite ltr0n.
have w0 : 0 < w by rewrite divr_gt0 // !mulr_gt0 ?ltr0n.
have w1 : 0 < 1 + w by rewrite addr_gt0 ?ltr01.
have alpha0 : 0 < alpha by rewrite ln_gt0 // ltrDl.
have xE : expR (- alpha) = (1 + w)^-1 by rewrite expRN lnK.
have x0 : 0 < expR (- alpha) := expR_gt0 _.
have x1 := exp_neg_lt1 (expR_exponential R) alpha0.
apply: le_lt_trans (theta_error o alpha0) _; set eps := 1 - _.
have eps0 : 0 <= eps.
  rewrite subr_ge0 invf_le1 ?exprn_ege1 ?exprn_gt0 ?(ltW (theta_series_gt1 x0 x1)) //.
  by rewrite (lt_trans ltr01) // theta_series_gt1.
apply: le_lt_trans (ler_wpM2l eps0 VP) _; rewrite -ltr_pdivlMr //.
apply: le_lt_trans (series_leak_le x0 x1 d) _.
set x := expR _ in xE x0 x1 *.
have x3 : x / (1 - x ^+ 3) < x / (1 - x).
  have x1' : 0 < 1 - x by rewrite subr_gt0.
  have x3' : x ^+ 3 < x by rewrite exprS gtr_pMr // exprn_ilt1 // ltW.
  rewrite ltr_pM2l // ltf_pV2 ?posrE ?subr_gt0 //; last exact: lt_trans x1.
  by rewrite ltrD2l ltrN2.
have -> : eta / V = d%:R * (2%:R * (x / (1 - x))).
  rewrite xE /w; have : d%:R != 0 :> R by rewrite gt_eqF.
  move: (d%:R : R) d0R => m m0 mn; have [vn en] : V != 0 /\ eta != 0 by rewrite !gt_eqF.
  have p0 : 0 < 2%:R * m * V by rewrite !mulr_gt0 ?ltr0n.
  field; apply/and4P; split=> //; first by rewrite gt_eqF // addr_gt0.
  by rewrite [X in X - eta]addrC addrK gt_eqF.
by rewrite ltr_pM2l // ltr_pM2l ?ltr0n.
Qed.
End Sharpness.
