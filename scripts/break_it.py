#!/usr/bin/env python3
"""Plants one bug at a time in a copy of the tree and shows that a test catches it.

Usage: scripts/break_it.py [--gpu] [NAME ...]   (all bugs without a name; about twenty minutes on two cores)
--gpu: those that only a GPU sees, built for this machine's.
Exit status 0 if every planted bug turned a test red.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPY = ROOT / "build/broken"

# name: (file, what stands there, what is planted, the tests that must see it)
BREAKS = {
    "scan forgets faster": (
        "src/host/ops/scan/selective_scan.cpp", "h = hn::MulAdd(decay, h,",
        "h = hn::MulAdd(hn::Mul(decay, hn::Set(d, 0.9999f)), h,", "SelectiveScan*"),
    "scan ignores resets": (
        "src/host/ops/scan/selective_scan.cpp", "if (resets.at(t)) panel_.clear(h_, channels_);", "", "SelectiveScan*"),
    "scan writes the row it read": (
        "src/host/ops/scan/selective_scan.cpp", "float* final_state = op_.final_state.data<float>() + rows_.write(b_)",
        "float* final_state = op_.final_state.data<float>() + rows_.read(b_)", "SelectiveScan*:LayerTest*"),
    "scan has no log1p": (
        "src/host/ops/vector_math-inl.h", "hn::Set(d, -0x1.ffffd2p-2f)", "hn::Set(d, -0x1.fff0p-2f)",
        "SelectiveScan*:VectorMath*"),
    "a decay of the scan never grows beyond f32": (
        "src/detail/scan_decays.hpp", "return op.A || !op.softplus;", "return false;", "SelectiveScan*"),
    "an A that is given learns as its logarithm": (
        "src/host/ops/scan/selective_scan_grad.cpp", "i = 0; op_.dA_log && i < size;", "i = 0; i < size;", "SelectiveScanGrad*"),
    "an Ssd's heads take B and C of the wrong group": (
        "src/host/ops/ssd/ssd_chunks-inl.h", "column = item_.group * sizes_.d_state;",
        "column = item_.head % sizes_.groups * sizes_.d_state;", "Ssd.*"),
    "the last, shorter chunk of an Ssd leaves the state as it was": (
        "src/host/ops/ssd/ssd_chunks-inl.h", "    advance(steps, k);\n", "    if (steps == ssd_chunk) advance(steps, k);\n", "Ssd.*"),
    "an Ssd's dt has no upper limit": (
        "src/host/ops/ssd/ssd_head-inl.h", "at_most(d, at_least(d, op.softplus ? softplus(d, v) : v, op.dt_low), op.dt_high);",
        "at_least(d, op.softplus ? softplus(d, v) : v, op.dt_low);", "Ssd.*"),
    "conv looks one step across a reset": (
        "src/host/ops/conv/causal_conv.cpp", "if (t < start_) return zeros_;", "if (t < start_ - 1) return zeros_;",
        "CausalConv*"),
    "conv state newest first": (
        "src/host/ops/conv/causal_conv.cpp", "to[c * past_ + k] = x[c];", "to[c * past_ + past_ - 1 - k] = x[c];",
        "CausalConv*"),
    "the convolution is not saved as published": (
        "src/host/model/mamba1/weights.cpp", "!decays, wanted, published_conv", "!decays", "ModelSave*"),
    "rows are copied over themselves": (
        "src/host/ops/ops.cpp", 'operands.apart("to", op.to, "from", op.from);', "", "BadCallsOfOps*"),
    "product without its bias": (
        "src/host/ops/matmul/matmul.cpp", "op.bias ? at(op.bias, first) : nullptr", "nullptr", "Matmul*"),
    "a product of few columns forgets what it adds to": (
        "src/host/ops/matmul/matmul.cpp", "  if (!op.accumulate) return;\n", "  if (op.accumulate) return;\n", "Matmul*"),
    "a product of few columns takes its first rows again": (
        "src/host/ops/matmul/matmul.cpp", "piece.first_column = r;", "piece.first_column = 0;", "Matmul*"),
    "product drops the last inputs": (
        "src/host/ops/matmul/gemv.cpp", "if (i + lanes <= gemv.in) {\n    add(even", "if (false) {\n    add(even", "Matmul*"),
    "a product takes a weight that no loader reads": (
        "src/detail/weight_dtypes.hpp", "return weight == x;", "return weight == x || weight != x;", "BadCallsOfOps*:Matmul*"),
    "norm without epsilon": (
        "src/host/ops/norm/add_rms_norm.cpp", "mean + op.epsilon", "mean", "AddRmsNorm*"),
    "embedding lets the first id too many in": (
        "src/host/ops/memory/embedding.cpp", "id >= vocab", "id > vocab", "Embedding*"),
    "penalty the wrong way round": (
        "src/host/ops/sample/sample.cpp", "hn::IfThenElse(hn::Gt(v, hn::Zero(d)),", "hn::IfThenElse(hn::Lt(v, hn::Zero(d)),",
        "Sample*"),
    "top_p keeps one more": (
        "src/host/ops/sample/sample.cpp", "if (above >= target) return false;", "if (above > target) return false;", "Sample*"),
    "reset of a mask leaves the conv state": (
        "src/host/model/state/state_verbs.cpp", "layer.each([&](const char*, Tensor& tensor) {\n      ZeroRows rows;",
        "layer.each([&](const char* name, Tensor& tensor) {\n      if (name[0] == 'c') return;\n      ZeroRows rows;",
        "StateTest*"),
    "scatter takes its rows for the source's": (
        "src/host/model/state/state_verbs.cpp", "op.to_rows = rows;", "op.from_rows = rows;", "StateTest*"),
    "a call in more pieces than are counted": (
        "src/host/core/team.cpp", "const int pieces = std::min(parts, Place::most_pieces);", "const int pieces = parts;",
        "TeamThreads.AnyNumber*"),
    "a forked process counts on its parent's threads": (
        "src/host/core/team.cpp", "  started_ = 0;\n", "", "TeamThreads.AForked*"),
    "each stream starts threads of its own": (
        "src/host/core/team.cpp", "std::max<std::int64_t>(helpers, std::min(lent_ + helpers, cores - 1))", "lent_ + helpers",
        "TeamThreads.Streams*"),
    "a generator runs on the stream of the thread that made it": (
        "src/host/generate/generator_pool.cpp", "stream(given == nullptr ? own.get() : given),",
        "stream(given == nullptr ? &default_stream(of.device()) : given),", "*Thread*"),
    "a stack takes any row map": (
        "src/host/model/stack.cpp", "  check_rows(where, options.rows, x.dim(0), state.batch(), stream);\n", "", "*RowMap*"),
    "a row may be read that another batch row writes": (
        "src/host/core/row_map.cpp", "if (written.has(read[b]) && write[b] != read[b]) add_wrong(read[b]);", "", "*RowMap*"),
    "a stack's layers differ after a refused copy": (
        "src/host/model/state/state_verbs.cpp", "const MambaState& to) { check_same(where, from, to); });\n"
        "  each_layer(other, self(), [&](const MambaState& from, MambaState& to) {\n",
        "MambaState& to) {\n    check_same(where, from, to);\n", "StateTest*"),
    "a state of another model is taken": (
        "src/host/generate/generator_snapshot.cpp", "if (fingerprint == own) return", "if (!fingerprint.empty()) return",
        "Generator*:Snapshot*"),
    "a surplus tensor is ignored": (
        "src/host/files/model_files.cpp", "checkpoint.check_all_used(used, parameter_names(config));", "", "BadFolder*"),
    "random weights are not divided by the depth": (
        "src/host/model/mamba1/weights.cpp", "draws::fan_in(c.d_inner) * draws::fan_in(n_layer)",
        "draws::fan_in(c.d_inner) * draws::fan_in(n_layer > 0 ? 1 : 2)",
        "LayerInit*"),
    "a step state is one step late": (
        "src/host/model/state/state.cpp", "all.view().steps(t, 1)", "all.view().steps(t > 0 ? t - 1 : t, 1)", "LayerTest*"),
    "pieces of a prompt share the first piece's resets": (
        "include/mamba/language_model.hpp", "options.reset.columns(first, count)", "options.reset.columns(0, count)",
        "LanguageModel*"),
    "the residual is added once": (
        "include/mamba/stack.hpp", "norm.x = branch;", "", "*Golden*"),
    "a norm does not go on from the sum before it": (
        "include/mamba/stack.hpp", "norm.residual = norm.sum;", "", "NormMatmulConv*:*Golden*"),
    "a sum that goes elsewhere is left in the residual too": (
        "src/host/ops/norm/add_rms_norm.cpp", "op.sum ? op.sum : op.x ? op.residual : TensorView()", "op.x ? op.residual : op.sum",
        "AddRmsNorm*"),
    "the norm of Mamba-2 is over its whole width": (
        "include/mamba/mamba2.hpp", "  norm.groups = c.groups;\n", "", "*Golden*:LayerTest*"),
    "Mamba-2 gates on the other side of its norm": (
        "include/mamba/mamba2.hpp", "norm.gate_first = !c.norm_before_gate;", "norm.gate_first = c.norm_before_gate;",
        "*Golden*:LayerTest*"),
    "a Mamba-2 without a norm is read as one with it": (
        "src/host/model/mamba2/config.cpp", '  layer.rmsnorm = ssm_cfg.flag_or("rmsnorm", true);\n', "", "*Golden*:Mamba2Config*"),
    "what gates in Mamba-2 is x": (
        "include/mamba/mamba2.hpp", "z(const TensorView& of) const { return of.columns(0, c.d_inner); }",
        "z(const TensorView& of) const { return of.columns(c.d_inner, c.d_inner); }", "*Golden*:LayerTest*"),
    "B and C of Mamba-2 change places": (
        "include/mamba/mamba2.hpp", "scan.B = B(a.convolved);\n  scan.C = C(a.convolved);",
        "scan.B = C(a.convolved);\n  scan.C = B(a.convolved);", "*Golden*:LayerTest*"),
    "Mamba-2's convolution looks across a reset": (
        "include/mamba/mamba2.hpp", "  conv.reset = r.reset;\n", "", "LayerTest*"),
    "the time steps of Mamba-2 have no upper limit": (
        "include/mamba/mamba2.hpp", "  scan.dt_high = c.dt_high;\n", "", "*Golden*:LayerTest*"),
    "padding of Mamba-2 comes out as what its z makes of it": (
        "include/mamba/mamba2.hpp", "if (r.rows.read) {", "if (false) {", "Mamba2Layer*"),
    "B and C change places": (
        "include/mamba/mamba1.hpp", "scan.B = a.selection.columns(c.dt_rank, c.d_state);\n"
        "  scan.C = a.selection.columns(c.dt_rank + c.d_state, c.d_state);",
        "scan.C = a.selection.columns(c.dt_rank, c.d_state);\n"
        "  scan.B = a.selection.columns(c.dt_rank + c.d_state, c.d_state);", "LayerTest*:*Golden*"),
    "a gradient crosses a reset of the scan": (
        "src/host/ops/scan/selective_scan_grad.cpp", "if (resets.at(t)) panel_.clear(dh_, channels_);", "",
        "SelectiveScanGrad*"),
    "the scan's gradient forgets faster": (
        "src/host/ops/scan/scan_grad_block-inl.h", "carry[k] = hn::Mul(hn::Load(d_, decay_ + at), dh);",
        "carry[k] = hn::Mul(hn::Mul(hn::Load(d_, decay_ + at), dh), hn::Set(d_, 0.99999f));", "SelectiveScanGrad*"),
    "a segment after a reset starts from the chunk's state": (
        "src/host/ops/scan/selective_scan_grad.cpp", "segment(chunk, t, end - t, resets.at(t));",
        "segment(chunk, t, end - t, false);", "SelectiveScanGrad*"),
    "a gradient crosses a reset of an Ssd": (
        "src/host/ops/ssd/ssd_grad.cpp", "G_is_zero_ = reset;", "G_is_zero_ = false;", "SsdGrad*"),
    "an Ssd's decay learns from the step's own input": (
        "src/host/ops/ssd/ssd_grad_chunk-inl.h", "static_cast<std::size_t>(i - j))", "static_cast<std::size_t>(i - j + 1))",
        "SsdGrad*"),
    "an Ssd's dt learns beyond its upper limit": (
        "src/host/ops/ssd/ssd_grad_chunk-inl.h", "hn::Ge(delta,", "hn::Gt(delta,", "SsdGrad*"),
    "the conv's final gradient crosses a reset": (
        "src/host/ops/conv/causal_conv_grad.cpp", "limit_ == time_ && t >= time_ - past_", "t >= time_ - past_",
        "CausalConvGrad*"),
    "a gradient crosses a reset of the conv": (
        "src/host/ops/conv/causal_conv_grad.cpp", "output < limit_", "output < time_", "CausalConvGrad*"),
    "every group is normed with the first one's weight": (
        "src/host/ops/norm/gated_rms_norm.cpp", "op.norm ? weight + first", "op.norm ? weight", "GatedRmsNorm.*"),
    "a gate without a norm learns from z as it is": (
        "src/host/ops/norm/gated_rms_norm.cpp", "hn::Mul(g, silu(d, gate)), dx + i", "hn::Mul(g, gate), dx + i",
        "GatedRmsNorm.*"),
    "the gate of a norm learns from what came out": (
        "src/host/ops/norm/gated_rms_norm.cpp", "hn::Mul(hn::Mul(dv, x_in), slope)", "hn::Mul(hn::Mul(g, x_in), slope)",
        "GatedRmsNorm.*"),
    "the norm's gradient pulls too hard": (
        "src/host/ops/norm/layer_norm.cpp", "sum_of(product) / n * scale * scale", "sum_of(product) / n * scale",
        "AddRmsNormGrad*"),
    "a product keeps its last block alone": (
        "src/host/ops/matmul/matmul.cpp", "add || k > 0", "add", "MatmulTransposed*"),
    "the target's logit is not raised": (
        "src/host/ops/train/cross_entropy.cpp", "op.scale * (p - 1)", "op.scale * p", "CrossEntropy*"),
    "the second moment is not corrected": (
        "src/host/ops/train/adamw.cpp", "std::sqrt(v[i] * constants.v_correction)", "std::sqrt(v[i])", "AdamWStep*"),
    "the norm is clipped with its loss scale": (
        "src/host/ops/train/adamw.cpp", "op.max_norm * op.loss_scale", "op.max_norm", "AdamWStep*"),
    "a step that overflowed counts": (
        "src/host/model/optimizer.cpp", "if (!std::isfinite(squares) && std::exchange(last_counts_, false)) --steps_;", "", "LossScale*"),
    "what followed from a failure hides it": (
        "src/detail/meeting.hpp", "    if (first_) return;\n", "", "Meeting*"),
    "text is not normalised": (
        "src/host/text/tokenizer.cpp", "tables_->nfc ? to_nfc(std::string(piece)) : std::string(piece)", "std::string(piece)",
        "Tokenizer*"),
    "a word takes all blanks before it": (
        "src/host/text/words.cpp", "return last == 0 ? end : last;", "return end;", "Tokenizer*"),
    "merges go from right to left among equals": (
        "src/host/text/bpe.cpp", ": a.left > b.left;", ": a.left < b.left;", "Tokenizer*"),
    "the shortest added token is found first": (
        "src/host/text/added_tokens.cpp", "ends(begin, length + 1) ? begin : nodes_[index(child.shorter)].token",
        "nodes_[index(child.shorter)].token >= 0 || !ends(begin, length + 1) ? nodes_[index(child.shorter)].token : begin",
        "Tokenizer*"),
    "three digits are cut before bytes are characters": (
        "src/host/text/pre_tokenizer.cpp", "if (step.into_alphabet && !last) write_in_alphabet();", "", "TokenizerFile*"),
    "a match of several is joined to the part before it": (
        "src/host/text/pre_tokenizer.cpp", "return match && !previous;", "return match;", "TokenizerFile*"),
    "a match is joined to the match after it": (
        "src/host/text/pre_tokenizer.cpp", "part->match && !next", "part->match", "TokenizerFile*"),
    "a line of a regular expression ends with the text alone": (
        "src/host/text/regular_expression_translate.cpp", "(?:(?=\\\\n)|(?<!\\\\n)\\\\z)", "(?:\\\\z)", "TokenizerFile*"),
    "a regular expression may take forever": (
        "src/host/text/regular_expression.cpp", "->take_one() ? 1 : 0", "->take_one() ? 1 : 1", "TokenizerFile*Long*"),
    "special tokens are put in front of every text": (
        "src/host/text/tokenizer.cpp", "if (special_tokens) ids = tables_->before;", "ids = tables_->before;", "TokenizerFile*"),
    "a word that is a token is merged all the same": (
        "src/host/text/bpe.cpp", "if (tables.ignore_merges) {", "if (false) {", "TokenizerFile*"),
    "long runs of marks are not put in order first": (
        "src/host/text/nfc.cpp", "marks.count() > many", "false", "HostileFiles.*Marks*"),
    "a batch reads its first row's prompt on": (
        "src/host/generate/generator.cpp", "if (texts[i]->size() > done) continue;", "if (texts[0]->size() > done) continue;",
        "GeneratorPool*"),
    "rows with a gap are taken for adjacent": (
        "src/host/generate/generator_step.cpp", "result.leading = rows.back() + 1 == result.count;", "result.leading = true;",
        "GeneratorPool*"),
    "an error of log-probabilities ends its whole group": (
        "src/host/generate/generator_group.cpp", "results[i].tokens.push_back(chosen[j].token);", "throw;", "LogProbs*"),
    "a token chosen too much is not taken back": (
        "src/host/generate/generator_group.cpp", "if (token >= 0) slots.unchoose(member.slot().row, token, member.options_);", "",
        "GeneratorPool*"),
    "every row chooses as the first does": (
        "src/host/ops/sample/sample.cpp", "values ? values.data<float>()[b] : otherwise", "values ? values.data<float>()[0] : otherwise",
        "Sample*"),
    "a fork keeps the trunk's random numbers": (
        "src/host/generate/generator.cpp", "options.seed = std::uint64_t{words[0]} << 32 | words[1];", "", "GeneratorPool*"),
    "a row keeps what its last owner left": (
        "src/host/generate/generator_pool.cpp", "{ zero(mine, *slots->stream); }", "{ (void)mine; }", "GeneratorPool*"),
    "half a character is not saved": (
        "src/host/generate/generator_file.cpp", "sampling.held = held();", "", "GeneratorPool*"),
    "a refused proposal is replaced from the target's own odds": (
        "src/host/generate/speculative.cpp", "if (left > 0) odds = std::move(rest);", "", "Speculation*"),
    "the state goes back one token too far": (
        "src/host/generate/speculative.cpp", "steps_.restore(taken - 1, target_", "steps_.restore(taken > 1 ? taken - 2 : 0, target_",
        "Speculation*"),
    "a known state is believed without its hash": (
        "src/host/generate/known_prefix.cpp", "  check_seal(\"StateCache\", file, saved);\n", "", "StateCache*"),
    "the cache throws out what was used last": (
        "src/host/generate/cache_lists.cpp", "for (auto entry = list.end(); entry != list.begin();) {\n    --entry;\n"
        "    if (entry->proven == of_proven) return entry;",
        "for (auto entry = list.begin(); entry != list.end(); ++entry) {\n    if (entry->proven == of_proven) return entry;",
        "StateCache*"),
    "a long prompt pushes out what others share": (
        "src/host/generate/cache_lists.cpp", "if (entry->proven == of_proven) return entry;", "return entry;", "StateCache*"),
    "a long prompt pushes out its own beginning": (
        "src/host/generate/cache_lists.cpp", "before = std::next(parent->second);", "before = list.begin();", "StateCache*"),
    "a known state of another text is believed": (
        "src/host/generate/known_prefix.cpp", "XXH128_isEqual(proof, proof_of(ids.data(), length, salt)) != 0;", "true;", "KnownPrefix*"),
    "a stop string is seen only at the end of a token": (
        "src/host/generate/generator_text.cpp", "if (at == std::string::npos) continue;",
        "if (at == std::string::npos || at + stop.size() != text.size()) continue;", "StopString*"),
    "text behind a stop string is given out": (
        "src/host/generate/generator_text.cpp", "after_stop_ + last.substr(0, end);", "after_stop_ + last;", "StopString*"),
    "text behind a stop string is lost with the process": (
        "src/host/generate/generator_file.cpp", "  content.after_stop = std::move(sampling.after_stop);\n", "", "StopString*"),
    "a stop string ends a text twice": (
        "src/host/generate/generator_text.cpp", "before >= stop.size() ? before - stop.size() + 1 : 0;", "0;", "StopString*"),
    "a file that is being written is taken for one that was left": (
        "src/host/files/atomic_file.cpp", "S_ISREG(found.st_mode) && lock(file, LOCK_EX | LOCK_NB)", "S_ISREG(found.st_mode)",
        "AtomicFile*"),
    "a replaced file gets the mode of a new one": (
        "src/host/files/atomic_file.cpp", "if (mode >= 0) static_cast<void>(fchmod(file_, static_cast<mode_t>(mode)) == 0);", "",
        "AtomicFile*"),
    "memory agents are told one step late that an episode begins": (
        "examples/rl/env/environments.cpp", "states[b].step == 0", "states[b].step == 1", "RlEnvironments*"),
    "an advantage passes the end of its episode": (
        "examples/rl/ppo/ppo_scalar.hpp", "ended ? 0.0f : gamma", "false ? 0.0f : gamma", "RlAdvantages*"),
    "advantages are normalised over steps that decide nothing": (
        "examples/rl/ppo/ppo.cpp", "    if (!decides) return;\n", "", "RlNormaliseAdvantages*"),
    "the policy's ratio is not clipped": (
        "examples/rl/ppo/ppo_scalar.hpp", "ratio < 1 - clip ? 1 - clip : ratio > 1 + clip ? 1 + clip : ratio", "ratio",
        "RlPpoLoss*"),
    "a GRU's weights of n learn from the wrong gate": (
        "examples/rl/gru/gru.cpp", "of(3 * hidden, 2 * hidden, hidden);", "of(2 * hidden, 2 * hidden, hidden);", "RlGru*"),
    "a GRU's gradient passes a reset": (
        "examples/rl/gru/gru.cpp", "if (begins(op.reset, b, t)) std::fill_n(at<float>(dh, b, 0), hidden, 0.0f);", "",
        "RlGru*"),
    "no gradient from one chunk to the next": (
        "examples/rl/ppo/learn.cpp", "options_.across_chunks ? &dstate : nullptr", "nullptr",
        "RlTrainer.GradientsAcrossChunks*"),
    "a rollout keeps the state after its chunk": (
        "examples/rl/rollout/rollout.cpp", "    initial.copy_from(state, stream);\n    chunk(first);\n",
        "    chunk(first);\n    initial.copy_from(state, stream);\n", "RlCollect*"),
    "a checkpoint forgets where the curriculum is": (
        "examples/rl/ppo/trainer.cpp", "saved.positions = {progress_.updates, delay(),",
        "saved.positions = {progress_.updates, 3,", "RlTrainer.GoesOnToTheBit*"),
    "a generation file is believed without its hash": (
        "src/host/generate/generator_file.cpp", "  check_seal(where, path, saved);\n", "", "GeneratorFile*"),
    "a hash leaves out the ssm states": (
        "src/host/files/content_hash.cpp", "add(hash, name, tensor); });", "if (name[0] != 's') add(hash, name, tensor); });",
        "GeneratorFile*:StateCache*"),
    "files call a tensor of the state by another name": (
        "src/host/files/state_names.hpp", "layer_prefix, layer, one.name)", "layer_prefix, layer, one.f32 ? \"h\" : one.name)",
        "GoldenFiles*"),
    "a generation goes on from nothing on another device": (
        "src/host/generate/generator_snapshot.cpp", "set_state(content.state, content.logits);",
        "copy(content.logits, slot().logits(), stream());", "*AGenerationSavedOnOneDevice*"),
    "a token that was taken back goes through the model all the same": (
        "src/host/generate/generator_snapshot.cpp", "  pending_ = false;\n", "", "Snapshot*"),
    "log-probabilities with a draft are those of another place": (
        "src/host/generate/speculative.cpp", "rows.rows(taken - 1, 1)", "rows.rows(0, 1)", "LogProbs*"),
    "a row keeps the bias of its last owner": (
        "src/host/generate/generator_pool.cpp", "if (bias.empty() && slots->bias) zero(slots->bias.view().rows(row, 1), *slots->stream);",
        "", "LogitBias*"),
    "a draft's proposals are judged without the bias": (
        "src/host/generate/token_odds.cpp", "if (!bias.empty()) v += bias[id];", "", "LogitBias*"),
    "a token that was taken back counts as a repetition": (
        "src/host/generate/generator_snapshot.cpp", "  copy(seen, slot().seen(), stream());\n", "  mark_seen(content.seen);\n",
        "Snapshot*"),
    "every proposal is accepted": (
        "src/host/generate/speculative.cpp", "if (at == proposals.size() || proposals[at] != best) break;",
        "if (at == proposals.size()) break;\n      result.back() = proposals[at];", "*GreedyTokensIn16Bits*"),
    "speculation goes on after the end of text": (
        "src/host/generate/speculative.cpp", "      ended = reason || static_cast",
        "      ended = (reason && *reason != StopReason::eos) || static_cast", "*EndOfTextEndsIt*"),
    "device memory is lost to a cache on the CPU": (
        "src/host/generate/state_cache.cpp", "    limits[on_host] += std::min(limits[on_device], INT64_MAX - limits[on_host]);\n",
        "", "StateCache*"),
    "training forgets no episode": (
        "examples/rl/ppo/learn.cpp", "part(observations), state, part(reset),", "part(observations), state, {},",
        "RlTrainer.TrainsThePolicyThatActed*"),
    "no layer is added to what it reads": (
        "examples/rl/ppo/ppo.cpp", "y[c] += x[c];", "y[c] += 0 * x[c];", "RlController.Adds*:RlAgent*"),
    "no gradient past the last layer": (
        "examples/rl/agent/mamba_controller.cpp", "    residual.y = dx;\n    run(residual, stream);\n",
        "    residual.y = dx;\n    if (!last) run(residual, stream);\n", "RlAgent*"),
    "a GRU's input learns from the wrong gates": (
        "examples/rl/agent/gru_controller.cpp", "sequence.dgates.columns(0, 3 * width_)",
        "sequence.dgates.columns(width_, 3 * width_)", "RlAgent*"),
    "a GRU's input forgets the later chunks": (
        "examples/rl/agent/gru_controller.cpp", "  input.accumulate = options.accumulate;\n", "", "RlAgent*"),
    "an agent's norm goes back from what it gave": (
        "examples/rl/agent/agent.cpp", "norm.x = hidden;", "norm.x = normed;", "RlAgent*"),
    "an agent's heads forget the later chunks": (
        "examples/rl/agent/agent.cpp", "  heads.accumulate = options.accumulate;\n", "", "RlAgent*"),
    "an update without a query counts as a failure": (
        "examples/rl/ppo/trainer.cpp", "if (score.queries == 0) return;", "", "RlTrainer.*"),
    "a checkpoint forgets how long the horizon is mastered": (
        "examples/rl/ppo/trainer.cpp", "progress_.mastered};", "0};", "RlTrainer.*"),
}

GPU_BREAKS = {
    "kernels wait for nothing": (
        "src/kernels/gpu/ptx.cuh", 'asm volatile("griddepcontrol.wait;" ::: "memory");', "", "CudaMatmul.AChain*"),
    "clusters on every device": (
        "src/kernels/matmul/skinny.cu", "capability >= sm_90 ? skinny_most_splits : 1", "capability > 0 ? skinny_most_splits : 1",
        "*CudaMatmulLimits*"),
    "all rows of a step are normed as the first": (
        "src/kernels/step/rows_step.cuh", "const float factor = factors[row];", "const float factor = factors[0];",
        "StackStep.*"),
    "a step of many rows ignores where its states go": (
        "src/kernels/step/rows_scan.cuh", "row.write >= 0 ? state_at(row.write) : -1;",
        "row.write >= 0 ? state_at(n) : -1;", "StackStep.*"),
    "a step of many rows leaves the gate away": (
        "src/kernels/step/rows_scan.cuh", "sums[r][lane]) * gate);", "sums[r][lane]));", "StackStep.*"),
    "the scan's warps fit into what an H200 has": (
        "src/kernels/scan/scan_chunked.cu", "while (warps > 1 && bytes() > most) --warps;",
        "while (warps > 1 && bytes() > most + 128 * 1024) --warps;", "*CudaScanLimits*"),
    "the gradient's warps fit into what an H200 has": (
        "src/kernels/scan/selective_scan_grad.cu", "Block::shared_bytes(warps, operands.d_state) > most) --warps;",
        "Block::shared_bytes(warps, operands.d_state) > most + 128 * 1024) --warps;", "*CudaScanGradLimits*"),
    "a warp of the scan hands on the state that it was given": (
        "src/kernels/scan/scan_chunked.cu", "    pass(at.next_slot, {h, Warp::round_after(round)});\n  }",
        "    pass(at.next_slot, {s.y[0], Warp::round_after(round)});\n  }", "CudaScan*"),
    "a warp of the gradient hands on nothing": (
        "src/kernels/scan/scan_grad_ring.cuh", "if constexpr (chunks == 1) pass(to + n * Channels, {carry,",
        "if constexpr (chunks == 1) pass(to + n * Channels, {0 * carry,", "CudaScanGrad*"),
    "a later chunk of an Ssd begins with what its first one began with": (
        "src/kernels/ssd/ssd_chunks.cuh", "S[n][k] = __fmul_rn(kept, S[n][k]);", "S[n][k] = S[n][k];", "CudaSsd*"),
    "an Ssd sees steps of the same chunk that are to come": (
        "src/kernels/ssd/ssd_chunks.cuh", "if (Selects && (j > i || j < begins.last(i)))",
        "if (Selects && j < begins.last(i))", "CudaSsd*"),
    "a segment of an Ssd begins with what the last one added": (
        "src/kernels/ssd/ssd_segments.cu", "store_vec(place, state);", "store_vec(place, added);", "CudaSsd*"),
    "a warpgroup of an Ssd sees the step that is to come": (
        "src/kernels/ssd/ssd_warpgroups.cuh", "pair_of(2 * q <= lane / 4, 2 * q + 1 <= lane / 4);",
        "pair_of(2 * q <= lane / 4, 2 * q <= lane / 4);", "CudaSsd*"),
    "a warpgroup of an Ssd mixes for the first of its heads": (
        "src/kernels/ssd/ssd_warpgroups.cuh", "own[j][k] = h == head ? xs[j][k] : 0;", "own[j][k] = xs[j][k];", "CudaSsd*"),
    "a warpgroup of an Ssd lets its x be overwritten while it is read": (
        "src/kernels/ssd/ssd_warpgroups.cuh", "wait_for_phase(empty(count % 2), count / 2 + 1);", "", "CudaSsd*"),
    "a gate without a norm hands on what it was given": (
        "src/kernels/norm/gated_rms_norm.cu", "to_z[v] = silu_grad<T>(gate[v], given[v] * out[v]);\n        out[v] = given[v];",
        "to_z[v] = silu_grad<T>(gate[v], given[v] * out[v]);", "GatedRmsNorm*"),
    "a warpgroup of an Ssd keeps B from before a reset": (
        "src/kernels/ssd/ssd_warpgroups.cuh", "if (last <= 0) return;", "return;", "CudaSsd*"),
    "an optimiser's last tensor of a launch is passed by": (
        "src/kernels/train/optimiser.cu", "int low = 0, high = count;", "int low = 0, high = count - 1;", "Optimizer*"),
    "the stack's kernel where blocks do not run together": (
        "src/kernels/step/stack_step.cu", "if (!most.cooperative || !sizes ||", "if (!sizes ||", "*StackStepLimits*"),
    "the stack's kernel whatever the code was built for": (
        "src/kernels/step/stack_step.cu", "device, where) >= sm_90;", "device, where) > 0;", "*StackStepLimits*"),
    "each launch sets its own shared memory": (
        "src/kernels/gpu/device.cu", "limits_of(device, where).shared_memory - one.static_shared),\n          where);\n"
        "    one.raised = true;",
        "static_cast<int>(dynamic)),\n          where);", "CudaThreads*"),
    "a stack's step takes any row map": (
        "src/host/model/stack.cpp", "  check_rows(where, options.rows, x.dim(0), state.batch(), stream);\n", "",
        "*WrongRowMap.IsRefusedByAStack*"),
    "a copy leaves the last word": (
        "src/kernels/memory/copy.cu", "count = t.outer * t.middle * t.inner;", "count = t.outer * t.middle * t.inner - 1;",
        "CudaCopy*"),
    "an adjoint crosses a reset": (
        "src/kernels/ssd_grad/steps.cuh", "sums[n] += ssd_reset_decay;", "", "CudaSsdGrad*"),
    "a step's decay does not see what spans it": (
        "src/kernels/ssd_grad/mma_within.cuh", "down[2 * t + 1] += here + tile[2 * half];",
        "down[2 * t + 1] += here;", "CudaSsdGrad*"),
}


def run(*command, seconds=None):
    return subprocess.run(command, cwd=COPY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)


def must(*command):
    result = run(*command)
    if result.returncode != 0:
        sys.exit(f"failed: {' '.join(command)}\n{result.stdout[-4000:]}")


def prepare(gpu):
    COPY.mkdir(parents=True, exist_ok=True)
    files = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
    for old in [p for p in COPY.rglob("*") if p.is_file() and COPY / "out" not in p.parents]:
        if str(old.relative_to(COPY)) not in files:
            old.unlink()  # of an earlier tree: CMake builds what stands in some folders
    for name in files:
        source, target = ROOT / name, COPY / name
        if not source.exists():
            continue
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)  # as of now: what a run that was killed left is built anew
    # What is planted may leave a name unused.
    flags = "-O1 -Wno-error=unused-parameter -Wno-error=unused-variable -Wno-error=unused-but-set-variable"
    cuda = ["-DMAMBA_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=native", "-DCMAKE_CUDA_FLAGS=-Xcompiler=-Wno-error"] if gpu else ["-DMAMBA_CUDA=OFF"]
    must("cmake", "-S", ".", "-B", "out", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_CXX_FLAGS={flags}",
         "-DMAMBA_BENCH=OFF", *cuda)
    must("cmake", "--build", "out", "--target", "mamba_tests")


def caught(file, old, new, tests):
    """The first test that turned red, what else betrays the bug, or None."""
    path = COPY / file
    good = path.read_text()
    if good.count(old) != 1:
        sys.exit(f"{file}: what is to be broken stands there {good.count(old)} times: {old}")
    try:
        path.write_text(good.replace(old, new))
        must("cmake", "--build", "out", "--target", "mamba_tests")
        try:  # some bugs keep a test from ending; the slowest that end take a minute
            result = run("out/tests/mamba_tests", f"--gtest_filter={tests}", "--gtest_brief=1",
                         "--gtest_fail_fast", seconds=300)
        except subprocess.TimeoutExpired:
            return "no end after 300 s"
        red = re.search(r"\[  FAILED  \] (\S+)", result.stdout)
        if result.returncode == 0:
            return None
        return red[1].rstrip(",") if red else f"exit status {result.returncode}"
    finally:
        path.write_text(good)


def main():
    gpu = "--gpu" in sys.argv
    if gpu:
        os.environ["MAMBA_REQUIRE_CUDA"] = "1"
    breaks = GPU_BREAKS if gpu else BREAKS
    names = [name for name in sys.argv[1:] if name != "--gpu"] or list(breaks)
    unknown = [name for name in names if name not in breaks]
    if unknown:
        sys.exit(f"{__doc__}\nNo bug of this name: {', '.join(unknown)}. There are:\n" + "\n".join(breaks))
    prepare(gpu)
    tests = ":".join(sorted({breaks[name][3] for name in names}))
    must("out/tests/mamba_tests", f"--gtest_filter={tests}", "--gtest_brief=1")  # all green to begin with
    missed = 0
    for i, name in enumerate(names, 1):
        start = time.time()
        red = caught(*breaks[name])
        missed += red is None
        print(f"[{i}/{len(names)}] {name}: {'caught by ' + red if red else 'NOT CAUGHT'}"
              f" ({time.time() - start:.0f} s)", flush=True)
    print(f"{len(names) - missed} of {len(names)} planted bugs caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
