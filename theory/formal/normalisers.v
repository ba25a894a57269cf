(** * Normalisers and their gaps (T16) *)
From mathcomp Require Import all_ssreflect all_algebra ring.
From Formal Require Import names setting exponential borders.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(** ** Entmax: cut at a threshold, then a power *)
Section Entmax.
Variables (R : realFieldType) (p : R -> R) (pw : power p) (K : finType) (t : K).
Implicit Types (z : K -> R) (tau : R).

Lemma power_lt x y : 0 <= x -> x < y -> p x < p y.
Proof. by case: pw => _ _; apply. Qed.

Lemma power_ge0 x : 0 <= x -> 0 <= p x.
Proof.
case: pw => p0 _ _; rewrite le_eqVlt => /predU1P[<- | x0]; first by rewrite p0.
by rewrite -p0 ltW // power_lt.
Qed.

Lemma power_inj x y : 0 <= x -> 0 <= y -> p x = p y -> x = y.
Proof.
by move=> x0 y0 xy; case: (ltgtP x y) => // [/(power_lt x0) | /(power_lt y0)]; rewrite xy ltxx.
Qed.

Lemma power0 x : 0 <= x -> p x = 0 -> x = 0.
Proof. by move=> x0 px; apply: power_inj => //; rewrite px; case: pw. Qed.

Lemma power1 x : 0 <= x -> p x = 1 -> x = 1.
Proof. by move=> x0 px; apply: power_inj; rewrite ?ler01 // px; case: pw. Qed.

Lemma cut_ge0 (x : R) : 0 <= Num.max 0 x.
Proof. by rewrite le_max lexx. Qed.

Lemma cut_one_hot z tau : \sum_k p (Num.max 0 (z k - tau)) = 1 ->
  (forall k, p (Num.max 0 (z k - tau)) = (k == t)%:R) <-> (forall k, k != t -> z k + 1 <= z t).
Proof.
case: pw => p0 p1 _ sum1; split=> [hot k kt | gap].
  have top : z t - tau = 1.
    have := power1 (cut_ge0 (z t - tau)); rewrite hot eqxx => /(_ erefl).
    by case: (leP 0 (z t - tau)) => // _ /eqP; rewrite eq_sym oner_eq0.
  have zero : Num.max 0 (z k - tau) = 0.
    by apply: power0; rewrite ?cut_ge0 // hot (negbTE kt).
  have le0 : z k - tau <= 0 by rewrite -zero le_max lexx orbT.
  by rewrite -(subrK tau (z t)) top addrC lerD2l -subr_le0.
have low : Num.max 0 (z t - tau) <= 1.
  rewrite leNgt; apply/negP => /(power_lt ler01); apply/negP; rewrite -leNgt p1 -sum1.
  rewrite (bigD1 t) //= -[leLHS]addr0 lerD // sumr_ge0 // => k _.
  exact/power_ge0/cut_ge0.
have off k : k != t -> Num.max 0 (z k - tau) = 0.
  move=> kt; apply/max_idPl; rewrite -(lerD2r 1) add0r.
  apply: (@le_trans _ _ (z t - tau)); first by rewrite addrAC lerD2r gap.
  by apply: le_trans low; rewrite le_max lexx orbT.
have hot : p (Num.max 0 (z t - tau)) = 1.
  by rewrite -sum1 (bigD1 t) //= big1 ?addr0 // => k kt; rewrite off.
by move=> k; case: eqVneq => [->|kt]; rewrite ?hot ?off.
Qed.

Lemma entmax_one_hot (a : R) z tau : 1 < a -> \sum_k entmax p a tau (z k) = 1 ->
  (forall k, entmax p a tau (z k) = (k == t)%:R) <-> (forall k, k != t -> z k + (a - 1)^-1 <= z t).
Proof.
move=> a1 sum1; have a0 : 0 < a - 1 by rewrite subr_gt0.
have [one two] := cut_one_hot (z := fun k => (a - 1) * z k) sum1.
have same k : (z k + (a - 1)^-1 <= z t) = ((a - 1) * z k + 1 <= (a - 1) * z t).
  by rewrite -(ler_pM2l a0) mulrDr divff // gt_eqF.
by split=> [hot k kt | gap]; [rewrite same; apply: one | apply: two => k kt; rewrite -same gap].
Qed.

(** The threshold is unique. *)
Lemma threshold_unique (a : R) z tau tau' : \sum_k entmax p a tau (z k) = 1 ->
  \sum_k entmax p a tau' (z k) = 1 -> forall k, entmax p a tau (z k) = entmax p a tau' (z k).
Proof.
wlog lt : tau tau' / tau <= tau' => [wlog one one' k|].
  by case/orP: (le_total tau tau') => le; [|apply/esym]; apply: wlog.
move=> sum1 sum1'; pose f tau k := entmax p a tau (z k); rewrite -/(f tau) -/(f tau').
have mono k : f tau' k <= f tau k.
  rewrite /f /entmax; set x := Num.max 0 ((a - 1) * z k - tau'); set y := Num.max 0 _.
  have : x <= y by rewrite /x /y ge_max !le_max lexx /= lerD2l lerN2 lt orbT.
  by rewrite le_eqVlt => /predU1P[-> // | /(power_lt (cut_ge0 _))/ltW].
have /eqP : \sum_k (f tau k - f tau' k) = 0 by rewrite sumrB sum1 sum1' subrr.
rewrite psumr_eq0 => [/allP zero k|k _]; last by rewrite subr_ge0.
by apply/eqP; rewrite -subr_eq0; apply: zero; rewrite mem_index_enum.
Qed.
End Entmax.

(** ** ReLU, and the hard maximum *)
Section Gaps.
Variables (R : realFieldType) (K : finType) (z : K -> R) (t : K).

Lemma relu_one_hot (H : R) : 0 < H -> z t = 0 ->
  (forall k, relu H (z k) = (k == t)%:R) <-> (forall k, k != t -> z k <= - H).
Proof.
move=> H0 zt; rewrite /relu; have sign k : (1 + z k / H <= 0) = (z k <= - H).
  by rewrite addrC -lerBrDr add0r ler_pdivrMr // mulN1r.
split=> [hot k kt | gap k].
  have zero : Num.max 0 (1 + z k / H) = 0 by rewrite hot (negbTE kt).
  by rewrite -sign -zero le_max lexx orbT.
case: eqVneq => [->|kt]; first by rewrite zt mul0r addr0; apply/max_idPr/ler01.
by apply/max_idPl; rewrite sign gap.
Qed.

Lemma top1_one_hot : (forall k, top1 z k = (k == t)%:R) <-> (forall k, k != t -> z k < z t).
Proof.
split=> [hot k kt | gap k].
  have tops : highest z t.
    apply/negP => /negP/negbTE none; have := hot t; rewrite /top1 none mul0r eqxx => /eqP.
    by rewrite eq_sym oner_eq0.
  rewrite lt_def (forallP tops) andbT; apply/eqP => zk.
  have : top1 z k = top1 z t.
    by rewrite /top1 /highest -zk.
  by rewrite !hot (negbTE kt) eqxx => /eqP; rewrite eq_sym oner_eq0.
have high j : highest z j = (j == t).
  case: eqVneq => [->|jt]; last by apply/forallPn; exists t; rewrite -ltNge gap.
  by apply/forallP => i; case: (eqVneq i t) => [->//|it]; apply/ltW/gap.
have -> : top1 z k = (k == t)%:R / #|pred1 t|%:R.
  by rewrite /top1 high; congr (_ / _%:R); apply: eq_card => j; apply: high.
by rewrite card1 divr1.
Qed.
End Gaps.

(** Keys that tie have equal weights, whatever the normaliser, if it treats all keys alike. *)
Lemma tied_weights (R : ringType) (K : finType) (S : Type)
    (normalise : {ffun K -> S} -> {ffun K -> R}) (z : {ffun K -> S}) i j :
  equivariant normalise -> z i = z j -> normalise z i = normalise z j.
Proof.
move=> equi zij; pose swap k := if k == i then j else if k == j then i else k.
have swapK : involutive swap.
  move=> k; rewrite /swap; case: (eqVneq k i) => [->|ki]; rewrite ?eqxx //.
    by case: eqVneq.
  by case: (eqVneq k j) => [->|kj]; rewrite ?eqxx // (negbTE ki) (negbTE kj).
have := equi z swap (inv_inj swapK) i; rewrite {2}/swap eqxx => <-.
congr (fun_of_fin (normalise _) i); apply/ffunP => k; rewrite ffunE /swap.
by case: eqP => [->|_]; [|case: eqP => [->|]].
Qed.

(** ** Softmax and sigmoid: in the limit only *)
Section Limits.
Variables (R : realFieldType) (e : R -> R) (expo : exponential e).

Lemma softmax_never (K : finType) (z : K -> R) k : softmax e z k != 0.
Proof. by rewrite gt_eqF // softmax_gt0. Qed.

Lemma softmax_limit (K : finType) (z : K -> R) t :
  vanishing (fun alpha => 1 - softmax e (fun k => alpha * z k) t) <-> (forall k, k != t -> z k < z t).
Proof.
split=> [limit k kt | gap eps eps0].
  rewrite ltNge; apply/negP => tk.
  have [|a0 close] := limit 3%:R^-1; first by rewrite invr_gt0 ltr0n.
  pose alpha := Num.max a0 0; have alpha0 : 0 <= alpha by rewrite le_max lexx orbT.
  have half : softmax e (fun k => alpha * z k) t <= 2%:R^-1.
    by apply: (at_most_half expo kt); rewrite ler_wpM2l.
  have := close alpha; rewrite le_max lexx => /(_ isT); apply/negP; rewrite -ltNge.
  apply: (@lt_le_trans _ _ 2%:R^-1); first by rewrite ltf_pV2 ?posrE ?ltr0n ?ltr_nat.
  by rewrite lerBrDr [leRHS](splitr 1) !div1r lerD2l.
have [g g0 gP] : exists2 g, 0 < g & forall k, k != t -> z k + g <= z t.
  pose s := \sum_(k | k != t) (z t - z k)^-1.
  have i0 k : k != t -> 0 < (z t - z k)^-1 by move=> kt; rewrite invr_gt0 subr_gt0 gap.
  have s0 : 0 <= s by apply: sumr_ge0 => k kt; apply/ltW/i0.
  exists (1 + s)^-1 => [|k kt]; first by rewrite invr_gt0 ltr_wpDr ?ltr01.
  rewrite addrC -lerBrDr -[leRHS]invrK lef_pV2 ?posrE ?i0 ?ltr_wpDr ?ltr01 //.
  rewrite /s (bigD1 k) //= addrCA lerDl addr_ge0 ?ler01 // sumr_ge0 // => j /andP[jt _].
  exact/ltW/i0.
have [] := @vanishes R e expo K (fun k => k != t) (fun alpha k => e (alpha * (z k - z t))) g g0 _ _ eps eps0.
- by move=> alpha k _; apply/ltW/exp_gt0.
- move=> alpha k alpha0 kt; rewrite exp_le // -mulrN ler_wpM2l // lerBlDr addrC -lerBlDr opprK.
  exact: gP.
move=> a0 small; exists a0 => alpha big; have [alpha0 le_eps] := small alpha big.
have -> : softmax e (fun k => alpha * z k) t = softmax e (fun k => alpha * (z k - z t)) t.
  rewrite -[RHS](softmax_constant expo _ (alpha * z t)); apply: softmax_eq => k.
  by rewrite mulrBr subrK.
rewrite softmax_target // ?subrr ?mulr0 // (bigD1 t) //= subrr mulr0 exp0 //.
set M := \sum_(k | _) _ in le_eps *.
have M0 : 0 <= M by apply: sumr_ge0 => k _; apply/ltW/exp_gt0.
have M1 : 0 < 1 + M by rewrite ltr_wpDr ?ltr01.
have -> : 1 - (1 + M)^-1 = M / (1 + M) by field; rewrite gt_eqF.
apply: share_le; rewrite ?ltr01 // mulr1 (le_trans _ le_eps) // lerDl.
exact/ltW/exp_gt0.
Qed.

Lemma sigmoid_bounds x : 0 < sigmoid e x < 1.
Proof.
have y0 := exp_gt0 expo (- x); have s0 : 0 < 1 + e (- x) by rewrite addr_gt0 ?ltr01.
by rewrite /sigmoid div1r invr_gt0 s0 invf_lt1 // ltrDl.
Qed.

Lemma sigmoid_lt x y : x < y -> sigmoid e x < sigmoid e y.
Proof.
move=> xy; rewrite /sigmoid !div1r ltf_pV2 ?posrE ?addr_gt0 ?ltr01 ?exp_gt0 //.
by rewrite ltrD2l exp_lt // ltrN2.
Qed.

Lemma sigmoid_le_exp x : sigmoid e x < e x.
Proof.
have x0 := exp_gt0 expo x; have y0 := exp_gt0 expo (- x).
by rewrite /sigmoid ltr_pdivrMr ?addr_gt0 ?ltr01 // mulrDr mulr1 expK // ltrDr.
Qed.

(** Half the sharpness is the best height. *)
Lemma sigmoid_height alpha H :
  let worst := Num.max (sigmoid e (- H)) (sigmoid e (H - alpha)) in
  sigmoid e (- (alpha / 2%:R)) <= worst /\
  (worst = sigmoid e (- (alpha / 2%:R)) <-> H = alpha / 2%:R).
Proof.
move=> worst; have two : alpha = alpha / 2%:R + alpha / 2%:R by rewrite -splitr.
set h := alpha / 2%:R in two *.
have [lt|gt|Hh] := ltgtP H h; last first.
- have E : worst = sigmoid e (- h).
    by rewrite /worst Hh (_ : h - alpha = - h) ?maxxx // {1}two opprD addrA subrr add0r.
  by rewrite E lexx.
- have s : sigmoid e (- h) < worst.
    rewrite /worst lt_max; apply/orP; right; apply: sigmoid_lt.
    by rewrite ltrBrDr {1}two addrA addNr add0r.
  by split; [apply: ltW | split=> [E | E]; [rewrite E ltxx in s | rewrite E ltxx in gt]].
have s : sigmoid e (- h) < worst.
  by rewrite /worst lt_max; apply/orP; left; apply: sigmoid_lt; rewrite ltrN2.
by split; [apply: ltW | split=> [E | E]; [rewrite E ltxx in s | rewrite E ltxx in lt]].
Qed.

Lemma sigmoid_opp x : 1 - sigmoid e x = sigmoid e (- x).
Proof.
rewrite /sigmoid opprK; have := expK expo x; have := exp_gt0 expo x; have := exp_gt0 expo (- x).
move: (e x) (e (- x)) => y y' y'0 y0 yy.
have -> : 1 / (1 + y) = y' / (1 + y').
  have -> : 1 + y' = y' * (1 + y) by rewrite mulrDr mulr1 [y' * y]mulrC yy addrC.
  by rewrite invfM mulrA divff // gt_eqF.
by field; rewrite gt_eqF // addr_gt0 ?ltr01.
Qed.

Lemma sigmoid_limit : vanishing (fun alpha => sigmoid e (- (alpha / 2%:R))).
Proof.
move=> eps eps0; exists (2%:R / eps) => alpha big; apply/ltW/(lt_le_trans (sigmoid_le_exp _)).
have h0 : 0 <= alpha / 2%:R.
  by rewrite divr_ge0 ?ler0n // (le_trans _ big) // divr_ge0 ?ler0n // ltW.
apply: le_trans (expN_le expo h0) _; have p : 0 < 1 + alpha / 2%:R by rewrite ltr_wpDr ?ltr01.
rewrite -[leRHS]invrK lef_pV2 ?posrE ?invr_gt0 //.
apply: (@le_trans _ _ (alpha / 2%:R)); last by rewrite lerDr ler01.
by rewrite ler_pdivlMr ?ltr0n // mulrC.
Qed.

Lemma sigmoid_one_hot (K : finType) (z : K -> R) t : z t = 0 -> (forall k, k != t -> z k <= -1) ->
  forall k, vanishing (fun alpha => `|sigmoid e (alpha * z k + alpha / 2%:R) - (k == t)%:R|).
Proof.
move=> zt gap k eps eps0; have [a0 small] := sigmoid_limit eps0.
exists (Num.max a0 0) => alpha; rewrite ge_max => /andP[big alpha0].
apply: le_trans (small alpha big); case: eqVneq => [->|kt].
  rewrite zt mulr0 add0r -sigmoid_opp distrC ger0_norm // subr_ge0 ltW //.
  by case/andP: (sigmoid_bounds (alpha / 2%:R)).
rewrite subr0 ger0_norm; last by case/andP: (sigmoid_bounds (alpha * z k + alpha / 2%:R)) => /ltW.
have : alpha * z k + alpha / 2%:R <= - (alpha / 2%:R).
  rewrite -lerBrDr -opprD -splitr -mulrN1 ler_wpM2l // gap //.
by rewrite le_eqVlt => /predU1P[-> // | /sigmoid_lt/ltW].
Qed.
End Limits.
