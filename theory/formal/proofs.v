(** * Every statement has a proof *)
From mathcomp Require Import all_ssreflect all_algebra reals normedtype derive sequences exp trigo.
From Formal Require Import setting setting_reals shifts exponential leak theorem1 borders
  sinks circles lattices quotient ranks networks ties normalisers scalar first_order reals
  expsums gradients cosines.
From Formal Require statements.
Set Implicit Arguments. Unset Strict Implicit. Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory numFieldNormedType.Exports.
Local Open Scope ring_scope.

Theorem heads_that_shift_sum_to_a_convolution : statements.heads_that_shift_sum_to_a_convolution.
Proof. red; intros; eapply shift_sum; eassumption. Qed.

Theorem heads_that_shift_sum_to_a_convolution_any_map :
  statements.heads_that_shift_sum_to_a_convolution_any_map.
Proof. red; intros; eapply shift_sum_any_map; eassumption. Qed.

Theorem heads_that_shift_sum_to_a_convolution_flipped :
  statements.heads_that_shift_sum_to_a_convolution_flipped.
Proof.
move=> R G K pos Din Dh Dout Nh N offset f W a Wval Wout b X q posI fB seen onehot product.
by apply: (shift_sum posI b X fB) => // h k; rewrite onehot -eqr_oppLR opprB.
Qed.

Theorem quadratic_scores_select_one_shift : statements.quadratic_scores_select_one_shift.
Proof. by red=> R d alpha K pos q Delta t d0 alpha0 posI; apply: leak_lt. Qed.

Theorem quadratic_scores_select_one_shift_supremum :
  statements.quadratic_scores_select_one_shift_supremum.
Proof. by red=> R d alpha q Delta eps alpha0 eps0; apply: leak_supremum. Qed.

Theorem quadratic_scores_select_one_shift_any_field :
  statements.quadratic_scores_select_one_shift_any_field.
Proof. by red=> R e d alpha K pos q Delta t N expo posI; apply: quadratic_leak. Qed.

Theorem quadratic_scores_select_one_shift_attained :
  statements.quadratic_scores_select_one_shift_attained.
Proof.
red=> R e d alpha q Delta N expo; have [t tE leak] := cube_leak expo N alpha q Delta.
exists _, (cube (q + Delta)), t; split=> //; first exact: cube_inj.
by rewrite tE; apply: cube_within.
Qed.

Theorem quadratic_scores_select_one_shift_rate : statements.quadratic_scores_select_one_shift_rate.
Proof. by red=> R e d alpha K pos q Delta t expo alpha0 posI; apply: quadratic_leak_uniform. Qed.

Theorem quadratic_scores_select_one_shift_per_axis :
  statements.quadratic_scores_select_one_shift_per_axis.
Proof. by red=> R e d alpha K pos q Delta t N expo posI; apply: diagonal_leak. Qed.

Theorem attention_expresses_convolution : statements.attention_expresses_convolution.
Proof. by red=> R e d Din Dh Dout N offset W b B eta expo; apply: epsilon_layer. Qed.

Theorem attention_expresses_convolution_paper : statements.attention_expresses_convolution_paper.
Proof.
red=> R e d Din Dh Dout K p W b B eta expo wide eta0.
have [L LP] := epsilon_layer expo (fun h => cell (kernel_index h) - p)
  (fun h => W (kernel_index h)) b B wide eta0.
exists L => n X q key XB o; rewrite -kernel_convolution; apply: LP => //.
  by move=> k k' /addIr/cell_inj.
exact: padded_cube_sees.
Qed.

Theorem attention_expresses_convolution_bound : statements.attention_expresses_convolution_bound.
Proof.
red=> R d Din Dh Dout N offset W Wval Wout b alpha K pos X q range d0 alpha0 product posI seen P o.
exact: theta_error.
Qed.

Theorem attention_expresses_convolution_sharpness :
  statements.attention_expresses_convolution_sharpness.
Proof.
red=> R d Din Dh Dout N offset W Wval Wout b V eta K pos X q range o alpha d0 eta0 V0.
by move=> product posI seen P VP; apply: (logarithm_error b product posI seen d0 P).
Qed.

Theorem attention_expresses_convolution_factors : statements.attention_expresses_convolution_factors.
Proof.
red=> R Din Dh Dout N W wide; exists (fun h => left_factor Dh (W h)).
by exists (stack (fun h => right_factor Dh (W h))) => h; rewrite block_stack factorsK.
Qed.

Theorem attention_expresses_convolution_tight : statements.attention_expresses_convolution_tight.
Proof.
red=> R e d Din Dh Dout alpha offset Wval Wout b K pos X q t r expo tE Xr.
exact: one_tap_error.
Qed.

Theorem attention_expresses_convolution_exponential :
  statements.attention_expresses_convolution_exponential.
Proof. exact: expR_exponential. Qed.

Theorem attention_is_soft_padding_then_convolution :
  statements.attention_is_soft_padding_then_convolution.
Proof.
red=> R G K pos Din Dh Dout Nh S normalise score shift Wval Wout b X q.
exact: (@rows_factor R G Din Dh Dout Nh K pos shift _
  (fun t => normalise [ffun k => score (pos k - t)])) => h k.
Qed.

Theorem attention_is_soft_padding_then_convolution_iff :
  statements.attention_is_soft_padding_then_convolution_iff.
Proof. by red=> R G K pos Din Dh Dout Nh shift Q a; apply: factors_iff. Qed.

Theorem attention_is_soft_padding_then_convolution_unique :
  statements.attention_is_soft_padding_then_convolution_unique.
Proof.
red=> R G K pos Din Dh Dout Nh shift a P q posI Din0 Dh0 Dout0.
exact: (rows_unique posI Din0 Dh0 Dout0).
Qed.

Theorem attention_is_soft_padding_then_convolution_kronecker :
  statements.attention_is_soft_padding_then_convolution_kronecker.
Proof. by red=> R e d axis s k expo; apply: softmax_product. Qed.

Theorem attention_is_soft_padding_then_convolution_sink :
  statements.attention_is_soft_padding_then_convolution_sink.
Proof. by red=> R e K c s k expo; apply: softmax_sink. Qed.

Theorem attention_is_soft_padding_then_convolution_first_order :
  statements.attention_is_soft_padding_then_convolution_first_order.
Proof. by red=> R K t F w X D wt w0 Ft XD; cbv zeta; apply: row_error. Qed.

Theorem attention_is_soft_padding_then_convolution_laplacian :
  statements.attention_is_soft_padding_then_convolution_laplacian.
Proof.
red=> R e alpha d K pos q Delta t N X D expo posI tE near N0 XD; cbv zeta.
have := laplacian expo alpha posI near N0 XD; congr (`|_ - _ - _| <= _).
rewrite mulr_suml; apply: eq_bigr => k _.
rewrite quadratic_weights_diagonal (diagonal_weights_relative expo (fun=> alpha) tE k).
have E j : e (- \sum_i alpha * ((pos j - pos t) 0 i)%:~R ^+ 2) = e (- alpha) ^+ sqnorm (pos j - pos t).
  by rewrite -score_power // sqnormE mulr_sumr.
by rewrite /softmax E [RHS]mulrAC; congr (_ / _); apply: eq_bigr => j _; rewrite E.
Qed.

Theorem attention_is_soft_padding_then_convolution_invertible :
  statements.attention_is_soft_padding_then_convolution_invertible.
Proof. by red=> R e alpha n t expo; apply: axis_unit. Qed.

Theorem attention_is_soft_padding_then_convolution_gradient :
  statements.attention_is_soft_padding_then_convolution_gradient.
Proof.
red=> R G K Q pos query Din Dout N shift W P X g.
under [RHS]eq_bigr do rewrite raddf_sum mulmx_sumr.
rewrite [RHS]exchange_big; apply: eq_bigr => q _ /=; rewrite /convolution add0r mulmx_suml.
under [RHS]eq_bigr do rewrite raddf_sum mulmx_sumr.
rewrite [RHS]exchange_big; apply: eq_bigr => h _ /=; rewrite /attend !mulmx_suml.
by apply: eq_bigr => k _; rewrite linearZ /= trmx_mul trmxK -!scalemxAl -!scalemxAr mulmxA.
Qed.

Theorem attention_is_soft_padding_then_convolution_covariance :
  statements.attention_is_soft_padding_then_convolution_covariance.
Proof. by red=> R n s X alpha; apply: covariance. Qed.

Theorem heads_count_the_rank_of_the_kernel_any_field :
  statements.heads_count_the_rank_of_the_kernel_any_field.
Proof.
red=> F G Din Dh Dout Nh N K pos offset W b b' a Wval Wout q free offsetI seen same.
exact: rank_le_heads offsetI same seen.
Qed.

Theorem heads_count_the_rank_of_the_kernel : statements.heads_count_the_rank_of_the_kernel.
Proof.
red=> R G Din Dh Dout N offset W b offsetI; split=> [Nh K pos a Wval Wout b' q free seen same|wide].
  exact: rank_le_heads offsetI same seen.
have [A [o [V [A0 _ tapE _]]]] := positive_heads W.
pose Z := total A (fun=> 0) 0.
have [Wval [Wout product]] := attention_expresses_convolution_factors (fun h => Z h *: V h) wide.
exists (positional offset A (fun=> 0)), Wval, Wout.
split=> [h p|h t|K pos X q posI seen]; first by apply: positional_ge0 => // *; apply: ltW.
  by rewrite positional_tap.
have out0 : \sum_h (0 : R) *: V h = 0 by rewrite big1 // => h _; rewrite scale0r.
exact: (positional_layer offsetI (fun t h => ltW (A0 t h)) (fun h => lexx 0) posI seen
  (or_intror (fun h => erefl)) b X product tapE out0).
Qed.

Theorem heads_count_the_rank_of_the_kernel_finite :
  statements.heads_count_the_rank_of_the_kernel_finite.
Proof.
red=> F G Din Dh Dout Nh N K pos offset W b b' a Wval Wout q free o h.
move=> posI offsetI seen free_o out weight same.
apply: (rank_lt_heads offsetI same seen free_o out (h := h)).
by rewrite (big_pred1 o) // => k; rewrite (inj_eq posI).
Qed.

Theorem heads_count_the_rank_of_the_kernel_finite_suffices :
  statements.heads_count_the_rank_of_the_kernel_finite_suffices.
Proof.
red=> R G Din Dh Dout N keys offset W b offsetI wide.
have [A [o [V [A0 o0 tapE outE]]]] := positive_heads W.
have [Wval [Wout product]] :=
  attention_expresses_convolution_factors (fun h => total A o keys h *: V h) wide.
exists (positional offset A o), Wval, Wout; split=> [h p|K pos X q counted posI seen].
  by rewrite /positional; case: pickP.
exact: (positional_layer offsetI (fun t h => ltW (A0 t h)) (fun h => ltW (o0 h)) posI seen
  (or_introl counted) b X product tapE outE).
Qed.

Theorem heads_count_the_rank_of_the_kernel_masked :
  statements.heads_count_the_rank_of_the_kernel_masked.
Proof.
red=> R G Din Dh Dout N offset W b offsetI; split=> [c wide side|]; last first.
  move=> y t y0 yW yt tap0 Nh K pos a Wval Wout b' q free seen a0 same.
  exact: (rank_lt_certified offsetI same seen a0 y0 yW yt tap0).
have [A [V [A0 tapE]]] := positive_basis side.
have [Wval [Wout product]] :=
  attention_expresses_convolution_factors (fun h => total A (fun=> 0) 0 h *: V h) wide.
exists (positional offset A (fun=> 0)), Wval, Wout.
split=> [h p|K pos X q posI seen]; first by apply: positional_ge0 => // *; apply: ltW.
have out0 : \sum_h (0 : R) *: V h = 0 by rewrite big1 // => h _; rewrite scale0r.
exact: (positional_layer offsetI (fun t h => ltW (A0 t h)) (fun h => lexx 0) posI seen
  (or_intror (fun h => erefl)) b X product tapE out0).
Qed.

Theorem head_dimension_is_block_term_rank : statements.head_dimension_is_block_term_rank.
Proof.
red=> F G Din Dh Dout Nh N K pos offset W q offsetI.
split=> [f posI seen|]; first exact: one_tap_heads.
by move=> a Wval Wout b b' free seen same; apply: block_terms offsetI seen same.
Qed.

Theorem one_dimension_expresses_every_convolution :
  statements.one_dimension_expresses_every_convolution.
Proof.
red=> R e G Din Dout N H T offset W b expo offsetI heads.
have NH : (N <= H)%N by case: heads => [->|[-> _]].
exists (scalar_encoding R offset), (scalar_layer e N T (head_matrix e W NH) b).
move=> K pos X q KT posI seen; apply: scalar_layer_convolution => //.
by case: heads => [->|[_ ->]]; [left | right].
Qed.

Theorem one_dimension_expresses_every_convolution_torus :
  statements.one_dimension_expresses_every_convolution_torus.
Proof. by red=> G N offset q t; exists (q + offset t). Qed.

Theorem one_dimension_expresses_every_convolution_invertible :
  statements.one_dimension_expresses_every_convolution_invertible.
Proof. exact: exponentials_unit. Qed.

Theorem one_dimension_expresses_every_convolution_fewer :
  statements.one_dimension_expresses_every_convolution_fewer.
Proof.
red=> R G Din Dh Dout N H K pos offset W a Wval Wout b q k posI offsetI seen equal.
exact: (heads_too_few posI offsetI seen equal).
Qed.

Theorem borders_are_limits_of_attention_replicate :
  statements.borders_are_limits_of_attention_replicate.
Proof. by red=> R d alpha K pos lower upper q Delta c d0 alpha0; apply: clamp_leak_lt. Qed.

Theorem borders_are_limits_of_attention_replicate_any_field :
  statements.borders_are_limits_of_attention_replicate_any_field.
Proof.
red=> R e d alpha K pos lower upper q Delta c N expo alpha0 posI inside cE near.
have box i : lower 0 i <= upper 0 i by case/andP: (inside c i) => /le_trans; apply.
exact: (clamp_leak box expo alpha0 posI inside cE near).
Qed.

Theorem borders_are_limits_of_attention_sink_on_grid :
  statements.borders_are_limits_of_attention_sink_on_grid.
Proof.
red=> R e d c K pos t expo posI.
apply: (sink_on_grid expo c (n := fun k => sqnorm (pos k - pos t))) => [|k kt].
  by rewrite subrr sqnorm0.
by apply: sqnorm_gt0; rewrite subr_eq0 (inj_eq posI).
Qed.

Theorem borders_are_limits_of_attention_sink_off_grid :
  statements.borders_are_limits_of_attention_sink_off_grid.
Proof.
red=> R e d c K pos t mu expo attained least.
exact: (sink_off_grid expo c (n := fun k => sqnorm (pos k - t)) attained least).
Qed.

Theorem borders_are_limits_of_attention_necessity :
  statements.borders_are_limits_of_attention_necessity.
Proof.
red=> R G K pos Din Dh Dout Nh N offset W a Wval Wout b x q q' X layer sum1 seen at_q at_q'.
have seen' t : on pos (q + offset t) by apply/existsP; have [k kE] := seen t; exists k; apply/eqP.
have gap : convolution offset W b X q - convolution offset W b X q' = _ :=
  missing_taps W b x q' seen'.
rewrite -gap -at_q -at_q'; apply/eqP; rewrite subr_eq0; apply/eqP.
apply: (constants_to_constants _ _ _ (x := x)) => // k; rewrite /X /on_keys.
by have -> : on pos (pos k) by apply/existsP; exists k.
Qed.

Theorem borders_are_limits_of_attention_precision :
  statements.borders_are_limits_of_attention_precision.
Proof. by red=> R e alpha expo; apply: precision_tie. Qed.

Theorem borders_are_limits_of_attention_reflection :
  statements.borders_are_limits_of_attention_reflection.
Proof. by red=> R e n r f expo; apply: no_reflection. Qed.

Theorem borders_are_limits_of_attention_reflection_iff :
  statements.borders_are_limits_of_attention_reflection_iff.
Proof. exact: reflection_scores. Qed.

Theorem borders_are_limits_of_attention_sink_leak : statements.borders_are_limits_of_attention_sink_leak.
Proof. by red=> R d alpha c K pos t d0 alpha0 posI; apply: sink_leak_lt. Qed.

Theorem borders_are_limits_of_attention_sink_leak_supremum :
  statements.borders_are_limits_of_attention_sink_leak_supremum.
Proof. by red=> R d alpha c t eps alpha0 eps0; apply: sink_leak_supremum. Qed.

Theorem borders_are_limits_of_attention_sink_leak_off_grid :
  statements.borders_are_limits_of_attention_sink_leak_off_grid.
Proof.
red=> R d alpha c K pos t i alpha0 posI off; cbv zeta.
by case: off => off; [apply: (@sink_off_lt _ _ _ alpha0 c _ _ _ i true) |
  apply: (@sink_off_lt _ _ _ alpha0 c _ _ _ i false)].
Qed.

Theorem borders_are_limits_of_attention_sink_leak_half :
  statements.borders_are_limits_of_attention_sink_leak_half.
Proof. by red=> R e d alpha N expo alpha0 d0; cbv zeta; apply: half_depth. Qed.

Theorem borders_are_limits_of_attention_sink_leak_spaced :
  statements.borders_are_limits_of_attention_sink_leak_spaced.
Proof.
red=> R e d alpha c K pos index origin s t N expo indexI lattice near.
exact: (on_grid_leak expo c (spaced_sum expo alpha indexI lattice near)).
Qed.

Theorem borders_are_limits_of_attention_sink_leak_between :
  statements.borders_are_limits_of_attention_sink_leak_between.
Proof.
red=> R e d alpha c K pos t i N expo alpha0 posI near off apart; cbv zeta.
exact: (off_grid_leak expo c (between_sum expo alpha0 posI near off apart)).
Qed.

Theorem borders_are_limits_of_attention_precision_any :
  statements.borders_are_limits_of_attention_precision_any.
Proof. by red=> R e alpha a b c expo; apply: precision_tie_any. Qed.

Theorem borders_are_limits_of_attention_circular : statements.borders_are_limits_of_attention_circular.
Proof.
red=> R e G T class f K pos t c expo ct.
have at_c : f (class (pos c - t)) = f 0 by rewrite raddfB ct subrr.
have [one two] := softmax_limit expo (fun k => f (class (pos k - t))) c.
by split=> [/one gap k kc | gap]; [rewrite -at_c gap | apply: two => k kc; rewrite at_c gap].
Qed.

Theorem borders_are_limits_of_attention_circular_leak :
  statements.borders_are_limits_of_attention_circular_leak.
Proof. by red=> R e alpha d n f t c expo; apply: circle_leak. Qed.

Theorem borders_are_limits_of_attention_circular_cosine :
  statements.borders_are_limits_of_attention_circular_cosine.
Proof. by red=> R alpha d N n t c d0 alpha0 N2 nN cE; cbv zeta; apply: cosine_leak nN cE. Qed.

Theorem certificates_compose_by_telescoping : statements.certificates_compose_by_telescoping.
Proof.
red=> S A B V input next c a out L s converted received error rest.
rewrite telescope; apply: eq_bigr => l _.
have [-> ->] := one_call input next c a out s (ltn_ord l).
by have -> : c l (received l) + error l = a l (received l) by rewrite addrC subrK.
Qed.

Theorem certificates_compose_by_telescoping_bound :
  statements.certificates_compose_by_telescoping_bound.
Proof.
red=> R D E W bias phi phi' x y z w B C d layer xy xE yE original converted contracts d0 dE.
elim=> [|l IH] j; last first.
  rewrite dE; apply: layer_step (original l.+1 j) (converted l.+1 j) _ => i.
  by rewrite xE yE; apply: contracts.
rewrite d0; have -> : B 0%N = B 0%N + 0 *m map_mx Num.norm (W 0%N) by rewrite mul0mx addr0.
apply: layer_step (original 0%N j) (converted 0%N j) _ => i.
by rewrite xy subrr normr0 mxE.
Qed.

Theorem certificates_compose_by_telescoping_relu :
  statements.certificates_compose_by_telescoping_relu.
Proof. by red=> R x y t; apply: relu_contracts. Qed.

Theorem four_score_terms_are_four_filters_shifts :
  statements.four_score_terms_are_four_filters_shifts.
Proof.
red=> R G Din Dh Dout Nh S normalise s Wval Wout b X shift q layer equi.
rewrite /layer 2!multiheadE; congr +%R; apply: eq_bigr => h _; congr mulmx.
apply: (equivariant_layer (kind := fun q k => k - q) (pi := fun k => k - shift) (s h)
  (fun _ x _ => x) X q (addIr (- shift)) equi) => p k.
by rewrite opprB addrA subrK.
Qed.

Theorem four_score_terms_are_four_filters_four_terms :
  statements.four_score_terms_are_four_filters_four_terms.
Proof.
red=> R e G Din Dk Dp Dh Dout Nh r L X shift q.
rewrite /self_attention 2!multiheadE; congr +%R; apply: eq_bigr => h _; congr mulmx.
rewrite /attend [RHS](reindex_inj (addIr (- shift))); apply: eq_bigr => k _ /=; congr (_ *: _).
have scoreE j : score r L (fun k => X (k - shift)) h q j = score r L X h (q - shift) (j - shift).
  by rewrite /score opprB addrA subrK.
rewrite /softmax scoreE [in RHS](reindex_inj (addIr (- shift))) /=; congr (_ / _).
by apply: eq_bigr => j _; rewrite scoreE.
Qed.

Theorem four_score_terms_are_four_filters_permutations :
  statements.four_score_terms_are_four_filters_permutations.
Proof.
red=> R G Din Dh Dout Nh S normalise s Wval Wout b X pi q layer equi piI.
rewrite /layer 2!multiheadE; congr +%R; apply: eq_bigr => h _; congr mulmx.
exact: (equivariant_layer (kind := fun _ _ => tt) (pi := pi) (fun x y _ => s h x y)
  (fun _ x _ => x) X q piI equi).
Qed.

Theorem positional_heads_are_convolutions : statements.positional_heads_are_convolutions.
Proof.
red=> R e G K pos Din N offset g X q posI offsetI covered conv_g.
rewrite -[conv_g 1%N _ 0 0]addr0 -(head_quotient e g posI offsetI covered).
by apply: eq_bigr => k _; rewrite addr0.
Qed.

Theorem positional_heads_are_convolutions_sink : statements.positional_heads_are_convolutions_sink.
Proof.
red=> R e G K pos Din N offset g sigma X q posI offsetI covered conv_g.
exact: (head_quotient e g posI offsetI covered X (e sigma)).
Qed.

Theorem positional_heads_are_convolutions_torus : statements.positional_heads_are_convolutions_torus.
Proof. by red=> R e G Din g X q; apply: torus_head. Qed.

Theorem positional_heads_are_convolutions_kernels :
  statements.positional_heads_are_convolutions_kernels.
Proof. by red=> R G kappa; apply: kernel_of_head. Qed.

Theorem hyperparameters_are_lattices_and_offsets_outputs :
  statements.hyperparameters_are_lattices_and_offsets_outputs.
Proof. exact: outputs_fit. Qed.

Theorem hyperparameters_are_lattices_and_offsets_adjoint :
  statements.hyperparameters_are_lattices_and_offsets_adjoint.
Proof. by red=> R G K Q key query Din Dout N offset W X Y keyI queryI; apply: adjoint. Qed.

Theorem hyperparameters_are_lattices_and_offsets_same :
  statements.hyperparameters_are_lattices_and_offsets_same.
Proof. exact: same_outputs. Qed.

Theorem hyperparameters_are_lattices_and_offsets_groups :
  statements.hyperparameters_are_lattices_and_offsets_groups.
Proof. by red=> R G g Din Dout N offset W b X q a diagonal; apply: group_convolution. Qed.

Theorem hyperparameters_are_lattices_and_offsets_reached :
  statements.hyperparameters_are_lattices_and_offsets_reached.
Proof. exact: unreached. Qed.

Theorem hyperparameters_are_lattices_and_offsets_output_size :
  statements.hyperparameters_are_lattices_and_offsets_output_size.
Proof. exact: outputs_inverse. Qed.

Theorem hyperparameters_are_lattices_and_offsets_pooling :
  statements.hyperparameters_are_lattices_and_offsets_pooling.
Proof.
red=> R e G K pos D window c X expo [t wt]; rewrite scaler_sumr [RHS]big_mkcond.
apply: eq_bigr => k _; rewrite (window_weight expo c wt).
by case: ifP => _; rewrite ?mul1r // mul0r scale0r.
Qed.

Theorem hyperparameters_are_lattices_and_offsets_window :
  statements.hyperparameters_are_lattices_and_offsets_window.
Proof.
red=> d axis window k; have := window_share [realFieldType of rat] window k.
by rewrite -natr_prod => /eqP; rewrite eqr_nat => /eqP.
Qed.

Theorem hyperparameters_are_lattices_and_offsets_ceil_mode :
  statements.hyperparameters_are_lattices_and_offsets_ceil_mode.
Proof. exact: ceil_outputs. Qed.

Theorem depth_buys_heads_bound : statements.depth_buys_heads_bound.
Proof.
red=> F G Din Dout N K K' pos offset W b q i f heads offsetI seen stacked same.
exact: rank_le_product offsetI seen stacked same.
Qed.

Theorem depth_buys_heads_residual : statements.depth_buys_heads_residual.
Proof. by red=> R K D K' D' D'' f heads n A V C P; apply: residual_stack. Qed.

Theorem depth_buys_heads_two_layers : statements.depth_buys_heads_two_layers.
Proof.
red=> F G Din E Dout m n alpha beta W; split=> [U Z b X q|]; first exact: two_convolutions.
split; first exact: two_layers_iff.
by rewrite leq_min rank_leq_row rank_leq_col.
Qed.

Theorem ties_cannot_express_convolution_invariance :
  statements.ties_cannot_express_convolution_invariance.
Proof. by red=> R K C S T D kind normalise s v pi X; apply: tied_head. Qed.

Theorem ties_cannot_express_convolution_floor : statements.ties_cannot_express_convolution_floor.
Proof. by red=> R K C pi W f piI; apply: floor. Qed.

Theorem ties_cannot_express_convolution_depth : statements.ties_cannot_express_convolution_depth.
Proof. by red=> R K C S T D kind normalise s v pi X q; apply: equivariant_layer. Qed.

Theorem ties_cannot_express_convolution_alibi : statements.ties_cannot_express_convolution_alibi.
Proof. by red=> R e m d K pos t expo m0 posI; cbv zeta; apply: alibi_leak. Qed.

Theorem ties_cannot_express_convolution_causal : statements.ties_cannot_express_convolution_causal.
Proof. exact: causal_periodic. Qed.

Lemma rank_layer (F : fieldType) (T Nh m : nat) (A : 'I_Nh -> 'M[F]_T)
    (phi : 'I_Nh -> 'M[F]_(T, m)) (psi : 'I_Nh -> 'M[F]_(m, T)) (normaliser : 'I_Nh -> 'I_T -> F)
    (c : 'I_Nh -> F) : (forall h q k, A h q k = (phi h *m psi h) q k / normaliser h q) ->
  (\rank (\sum_h c h *: A h)%R <= Nh * m)%N.
Proof.
move=> weights; pose rows h : 'M[F]_(T, m) := \matrix_(q, j) (phi h q j / normaliser h q).
apply: (rank_heads (phi := rows) (psi := psi)) => h; apply/matrixP => q k.
by rewrite weights !mxE mulr_suml; apply: eq_bigr => j _; rewrite mxE mulrAC.
Qed.

Theorem low_rank_attention_cannot_express_convolution_rank :
  statements.low_rank_attention_cannot_express_convolution_rank.
Proof.
red=> F T Nh m moved shift A phi psi normaliser c shiftI weights sum_shift.
apply: leq_trans (rank_shift F shiftI) _; rewrite /shift_matrix -sum_shift.
exact: rank_layer weights.
Qed.

Theorem low_rank_attention_cannot_express_convolution :
  statements.low_rank_attention_cannot_express_convolution.
Proof.
red=> R T Nh m moved shift A phi psi normaliser c b shiftI weights layer image.
have low := rank_layer c weights; split.
  exact: (low_rank_attention_cannot_express_convolution_rank shiftI weights).
split=> [few | X box q]; first exact: grey_is_as_good shiftI (leq_ltn_trans low few) b.
have /andP[lo hi] := box (shift q); have half : 2%:R^-1 + 2%:R^-1 = 1 :> R.
  by rewrite [RHS](splitr 1) !div1r.
rewrite ler_norml -subr_ge0 opprK subrK lo /= -subr_ge0 opprB addrA half.
by rewrite subr_ge0.
Qed.

Theorem normalisers_are_one_hot_from_their_gap : statements.normalisers_are_one_hot_from_their_gap.
Proof.
red=> R e p K z t a tau H expo pw; split; first exact: entmax_one_hot.
split; first exact: relu_one_hot.
split; first exact: top1_one_hot.
split; first exact: softmax_never.
split; first exact: softmax_limit.
by split; [apply: sigmoid_bounds | apply: sigmoid_one_hot].
Qed.

Theorem normalisers_are_one_hot_from_their_gap_sparsemax :
  statements.normalisers_are_one_hot_from_their_gap_sparsemax.
Proof. by red=> R K z t tau; apply: (@cut_one_hot R id). Qed.

Theorem normalisers_are_one_hot_from_their_gap_threshold :
  statements.normalisers_are_one_hot_from_their_gap_threshold.
Proof. by red=> R p K z a tau tau' pw; apply: threshold_unique. Qed.

Theorem normalisers_are_one_hot_from_their_gap_power :
  statements.normalisers_are_one_hot_from_their_gap_power.
Proof. exact: real_power. Qed.

Theorem normalisers_are_one_hot_from_their_gap_ties :
  statements.normalisers_are_one_hot_from_their_gap_ties.
Proof. exact: tied_weights. Qed.

Theorem normalisers_are_one_hot_from_their_gap_height :
  statements.normalisers_are_one_hot_from_their_gap_height.
Proof.
red=> R e alpha H expo worst; have [le iff] := sigmoid_height expo alpha H.
by split=> //; split=> //; apply: sigmoid_le_exp.
Qed.

From Coq Require Import Reals ZArith.
From Flocq Require Import Core BinarySingleNaN.
From Formal Require Import setting_floats setting_ieee floats rounding nonfinite.
Open Scope R_scope.

Theorem saturated_softmax_is_one_hot : statements.saturated_softmax_is_one_hot.
Proof.
exact (conj one_hot_binary32 (conj one_hot_binary64 (conj one_hot_binary16 one_hot_bfloat16))).
Qed.

Theorem saturated_softmax_is_one_hot_copies : statements.saturated_softmax_is_one_hot_copies.
Proof. exact head_copies. Qed.

Theorem saturated_softmax_is_one_hot_integers : statements.saturated_softmax_is_one_hot_integers.
Proof. red; intros; apply sum_integers; trivial. Qed.

Theorem saturated_softmax_is_one_hot_layer : statements.saturated_softmax_is_one_hot_layer.
Proof.
red; intros F gap flush reciprocal ex alpha t s top order X W b terms format_of ha hex hs htop once hX.
assert (one : forall h k, computed_softmax F flush reciprocal ex (order h) (s h) (top h) k
    = one_hot (t h) k).
  by destruct format_of as [[-> E]|[-> E]]; rewrite E in ha; intros h k;
    [apply one_hot_binary32 with alpha | apply one_hot_binary64 with alpha].
intros; apply layer_is_convolution; trivial; destruct format_of as [[-> _]|[-> _]]; easy.
Qed.

Theorem saturated_softmax_is_one_hot_half_layer : statements.saturated_softmax_is_one_hot_half_layer.
Proof.
red; intros H gap keys flush reciprocal ex alpha t s top order X W b terms format_of ha hex hs htop once few hX.
assert (one : forall h k, fl H flush
    (computed_softmax binary32 flush reciprocal ex (order h) (s h) (top h) k) = one_hot (t h) k).
  by destruct format_of as [[-> [E E']]|[-> [E E']]]; rewrite E in ha; rewrite E' in few; intros h k;
    [apply one_hot_binary16 with alpha | apply one_hot_bfloat16 with alpha].
intros; apply (layer_is_convolution binary32); trivial; easy.
Qed.

Theorem saturated_softmax_is_one_hot_not_from_46 :
  statements.saturated_softmax_is_one_hot_not_from_46.
Proof. exact forty_six. Qed.

Theorem saturated_softmax_is_one_hot_exponential :
  statements.saturated_softmax_is_one_hot_exponential.
Proof. exact rounded_exponential. Qed.

Theorem saturated_softmax_is_one_hot_scores : statements.saturated_softmax_is_one_hot_scores.
Proof. exact rounded_scores. Qed.

Theorem layer_error_is_certified_sums : statements.layer_error_is_certified_sums.
Proof. red; intros; apply sum_error; trivial. Qed.

Theorem layer_error_is_certified_products : statements.layer_error_is_certified_products.
Proof. red; intros; apply products_error; trivial. Qed.

Theorem layer_error_is_certified_exponential : statements.layer_error_is_certified_exponential.
Proof. red; intros; apply exponential_error_of with (y := y); trivial. Qed.

Theorem layer_error_is_certified_softmax : statements.layer_error_is_certified_softmax.
Proof.
red; intros F H flush reciprocal ex order s E top tau nu T u z A beta rho mu.
intros; apply (softmax_error F H flush reciprocal) with (z := z); trivial.
Qed.

Theorem layer_error_is_certified_head : statements.layer_error_is_certified_head.
Proof. red; intros; apply head_error; trivial. Qed.

Theorem layer_error_is_certified_nearly_one_hot : statements.layer_error_is_certified_nearly_one_hot.
Proof.
red; intros F H reciprocal ex order s E X t top lambda largest z off weight.
intros; apply (near_one_head F H reciprocal) with (z := z) (t := t); trivial.
Qed.

Theorem dense_attention_spreads_non_finite_pixels :
  statements.dense_attention_spreads_non_finite_pixels.
Proof. red; intros; eapply dense_nonfinite; eassumption. Qed.

Theorem dense_attention_spreads_non_finite_pixels_nan :
  statements.dense_attention_spreads_non_finite_pixels_nan.
Proof. red; intros; eapply dense_nan; eassumption. Qed.

Theorem dense_attention_spreads_non_finite_pixels_finite :
  statements.dense_attention_spreads_non_finite_pixels_finite.
Proof. red; intros; apply dense_finite; trivial. Qed.
