"""A recurrent state in the place of transformers' caches."""

import torch
from transformers.cache_utils import Cache

from ._core import StackSteps


class MambaCache(Cache):
    """The state of a model in the place of transformers' caches.

    It can be reordered for beams, and cropped: while it records, the states after the last tokens
    of every call are kept until the next crop.
    """

    # How many states a recorded call keeps at least: a draft goes back into the prompt by one.
    _kept = 4

    def __init__(self, model, state=None):
        super().__init__(layers=[])
        self.model = model
        self.state = state
        self.seen = 0  # columns of generate()'s ids that have been read
        self.logits = None  # [batch, vocab_size] after the last of them
        self._given = None  # the same, where they were read elsewhere and nothing was read here
        self.recording = False
        self._records = []  # (columns before it, columns, StackSteps), of none: a StackState

    def begin(self, last=None, logits=None):
        """From here on ids are counted anew. With `logits` the first of them is read already."""
        self.seen = 0 if last is None else last.shape[1]
        self.logits = self._given = logits
        self._records.clear()

    def read(self, ids, keep):
        """f32 [batch, keep, vocab_size] after the last `keep` of `ids` [batch, time]: of all of
        them, and of what begin() was given, where there are less."""
        batch, time = ids.shape
        self._fit(batch)
        parts = [] if self._given is None else [self._given[:, None]]
        if time == 0 and not parts:
            raise ValueError("MambaCache.read: ids: expected at least one token, got none")
        self._given = None
        tail = min(time, max(keep, self._kept)) if self.recording else time
        numbers = ids.detach().cpu().numpy()
        if tail < time:
            self.model.forward(numbers[:, : time - tail], self.state, "none")
        elif self.recording and not self._records:
            self._records.append((self.seen, 0, self.state.clone()))
        if tail > 0:
            steps = StackSteps() if self.recording else None
            last = numbers[:, time - tail :]
            wanted = "all" if keep > 1 else "last"
            logits = torch.from_dlpack(self.model.forward(last, self.state, wanted, steps))
            parts.append(logits if keep > 1 else logits[:, None])
            if self.recording:
                self._records.append((self.seen + time - tail, tail, steps))
        logits = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        self.seen += time
        self.logits = logits[:, -1]
        return logits[:, -keep:]

    def read_padded(self, ids, mask, keep):
        """The same where `mask` [batch, time] leaves out padding, whose logits are zeros. Row by
        row: a row's state sees its own tokens alone."""
        batch, time = ids.shape
        self._fit(batch)
        logits = torch.zeros(batch, time, self.model.config["vocab_size"], device=ids.device)
        last = []
        for row in range(batch):
            columns = mask[row].bool()
            one = MambaCache(self.model, self.state.gather([row]) if batch > 1 else self.state)
            one.recording = self.recording and batch == 1
            logits[row, columns] = one.read(ids[row : row + 1, columns], int(columns.sum()))[0]
            last.append(one.logits)
            if batch > 1:
                self.state.scatter(one.state, [row])
            else:
                ahead = self.seen + time - int(columns.sum())
                self._records += [(begin + ahead, n, kept) for begin, n, kept in one._records]
        self.seen += time
        self.logits = torch.cat(last)
        return logits[:, -keep:]

    def _fit(self, batch):
        if self.state is None:
            self.state = self.model.make_state(batch)
        if self.state.batch != batch:
            if batch % self.state.batch != 0:
                raise ValueError(
                    f"MambaCache.read: ids: expected {self.state.batch} rows as in the state, or a "
                    f"multiple, got {batch}"
                )
            times = batch // self.state.batch
            self.state = self.state.repeat(times)
            if self._given is not None:
                self.logits = self._given = self._given.repeat_interleave(times, 0)

    @property
    def starts(self):
        """Whether all that was read was read elsewhere."""
        return self._given is not None

    # What transformers calls.

    def get_seq_length(self, layer_idx=0):
        return self.seen

    def get_max_length(self, layer_idx=None):
        return -1

    def activate_past_recording(self):
        self.recording = True

    def crop(self, tokens_to_remove):
        """Takes the last -tokens_to_remove tokens back, and forgets what it kept for that."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"MambaCache.crop: tokens_to_remove: expected at most 0, got {tokens_to_remove}"
            )
        target = self.seen + tokens_to_remove
        if tokens_to_remove:
            for begin, count, kept in self._records:
                if begin == target and count == 0:
                    self.state.copy_from(kept)
                    break
                if begin < target <= begin + count:
                    kept.restore(target - begin - 1, self.state)
                    break
            else:
                first = self.seen
                if self._records:
                    first = self._records[0][0] + min(1, self._records[0][1])
                raise ValueError(
                    f"MambaCache.crop: tokens_to_remove: expected {first - self.seen} to 0, whose "
                    f"states were kept, got {tokens_to_remove}"
                )
            self.logits = None
        self.seen = target
        self._records.clear()

    def reorder_cache(self, beam_idx):
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices):
        rows = indices.tolist()
        self.state = self.state.gather(rows)
        self.logits = None if self.logits is None else self.logits[rows]
        self._given = None if self._given is None else self._given[rows]
        self._records.clear()

    def batch_repeat_interleave(self, repeats):
        self._fit(self.state.batch * repeats)
        self._records.clear()

    def reset(self):
        if self.state is not None:
            self.state.reset()
        self.seen = 0
        self.logits = self._given = None
        self._records.clear()

    def __deepcopy__(self, memo):
        other = MambaCache(self.model, None if self.state is None else self.state.clone())
        other.seen, other.recording = self.seen, self.recording
        other.logits, other._given = self.logits, self._given  # which nothing changes
        return other
