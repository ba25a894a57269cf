(** * Networks whose layers are replaced (T23) *)
From mathcomp Require Import all_ssreflect all_algebra.
From Formal Require Import names setting.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Telescope.
Variables (S A : Type) (B V : zmodType) (input : nat -> S -> A) (next : nat -> S -> B -> S).
Variables (c a : nat -> A -> B) (out : S -> V) (L : nat) (s : S).

Lemma run_last (f : nat -> A -> B) l n s' : run input next f l n.+1 s'
  = next (l + n) (run input next f l n s') (f (l + n)%N (input (l + n) (run input next f l n s'))).
Proof. by rewrite /run -addn1 iotaD foldl_cat. Qed.

(** The first l calls replaced, and the others not. *)
Let hybrid l := out (run input next c l (L - l) (run input next a 0 l s)).

Lemma telescope : out (run input next a 0 L s) - out (run input next c 0 L s)
  = \sum_(l < L) (hybrid l.+1 - hybrid l).
Proof.
rewrite -(big_mkord xpredT (fun l => hybrid l.+1 - hybrid l)) telescope_sumr // /hybrid.
by rewrite subnn subn0.
Qed.

Lemma one_call l : (l < L)%N ->
  let state := run input next a 0 l s in
  let rest y := out (run input next c l.+1 (L - l.+1) (next l state y)) in
  hybrid l.+1 = rest (a l (input l state)) /\ hybrid l = rest (c l (input l state)).
Proof. by move=> lL /=; rewrite /hybrid run_last add0n -(subnSK lL). Qed.
End Telescope.

(** Along a chain each layer adds its own error to what it makes of those before it. *)
Lemma layer_step (R : realFieldType) D E (W : 'M[R]_(D, E)) (bias z w B C : 'rV[R]_E)
    (x y t : 'rV[R]_D) j :
  `|(x *m W + bias) 0 j - z 0 j| <= C 0 j -> `|w 0 j - (y *m W + bias) 0 j| <= B 0 j ->
  (forall i, `|y 0 i - x 0 i| <= t 0 i) ->
  `|w 0 j - z 0 j| <= (B + t *m map_mx Num.norm W + C) 0 j.
Proof.
move=> original converted apart.
have -> : w 0 j - z 0 j = (w 0 j - (y *m W + bias) 0 j)
    + ((y *m W + bias) 0 j - (x *m W + bias) 0 j) + ((x *m W + bias) 0 j - z 0 j).
  by rewrite addrA addrA subrK subrK.
rewrite [X in _ <= X]mxE [X in _ <= X + _]mxE.
apply: le_trans (ler_normD _ _) (lerD (le_trans (ler_normD _ _) (lerD converted _)) original).
have -> : (y *m W + bias) 0 j - (x *m W + bias) 0 j = \sum_i (y 0 i - x 0 i) * W i j.
  rewrite !mxE opprD addrACA subrr addr0 -sumrB.
  by apply: eq_bigr => i _; rewrite mulrBl.
rewrite mxE; apply: le_trans (ler_norm_sum _ _ _) _; apply: ler_sum => i _.
by rewrite normrM mxE ler_wpM2r.
Qed.

Lemma relu_contracts (R : realFieldType) (x y t : R) :
  `|x - y| <= t -> `|Num.max 0 x - Num.max 0 y| <= t.
Proof.
apply: le_trans; wlog le : x y / x <= y.
  by move=> H; have [|/ltW] := leP x y => /H // ; rewrite distrC [X in _ <= X]distrC.
have [y0|y0] := leP y 0.
  by rewrite (max_l (le_trans le y0)) subrr normr0.
have [x0|x0] := leP x 0; last by [].
rewrite sub0r normrN gtr0_norm // distrC ger0_norm ?subr_ge0 //.
by rewrite lerDl oppr_ge0.
Qed.
