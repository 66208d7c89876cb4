"""Training: the spine of every backend step that makes a variant by training it.

A step is a `harness.backends._common.training.TrainingBackend`: its YAML settings are those of `settings.Optimization`
(batch, learning rate, schedule, early stop, …) and its own. The texts, the seed and the number of steps come from the
variant file's ``training:`` section. It implements ``train``:

    class Recover(TrainingBackend):
        "Trains every weight towards the reference."

        def train(self, model, tokenizer, training):
            import torch
            from harness.training.fitting import fit
            from harness.training.loop import Task, Trainable
            from harness.training.losses import mean_kl, predict

            def loss(student, teacher, batch):                # named losses, weighted, means over scored tokens
                return {"kl": mean_kl(predict(teacher, batch), batch.logits(student))}

            dtype, model = model.dtype, model.float()         # trained in float32, cast back at the end
            trainable = {name: Trainable(each) for name, each in model.named_parameters()}
            task = Task(self.kind, model, trainable, loss, depends_on=self.settings())
            fit(task, self, training)
            return Compressed(model.to(dtype))

``training`` (`data.Training`) holds the texts as token ids (``texts``, ``held_out``), the frozen reference
(``teacher``), the number of ``steps``, the ``seed``, and where checkpoints are kept. ``fit`` changes the trainable
parameters (and ``Task.state``: other tensors that a forward pass changes, such as running averages) in place, continues
a training that was killed to the same bits, takes a finished one from its file, and notes curves and memory for the
report (``training.fits``). Running averages must change only where ``torch.is_grad_enabled()``: evaluations run without
gradients. A loss may draw from torch's global generators: each step finds them seeded.

The student may be any model. ``Task.examples`` takes the place of the texts (generations of the teacher, a prompt that
is not scored: ``Example.scored_from``), ``Task.together`` keeps pairs together, ``Task.comparable=False`` says that
student and teacher have other tokens, and ``Batch.places`` which examples a loss sees, for what was computed about each
beforehand. A step whose settings need no shared tokens overrides the property ``reads_tokens``.

    settings   what YAML says of an optimization          examples      batches and their order
    loop       steps, parts, evaluation, divergence       checkpoints   files that a kill leaves whole
    fitting    the key of a training, resuming, caching   memory        forecast by shapes; measuring: as it is
    objectives loss functions, one file each              divergence    when a training is given up
"""
