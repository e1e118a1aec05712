"""What the project's speed is measured by: `python -m benchmarks` prints every table, in less than ten minutes.

The peers have our weights, batch and threads, and take turns with us in one process:

    (a)  nn.Embedding, nn.RNN or nn.LSTM over the padded batch, nn.Linear, F.cross_entropy that ignores <NULL>
    (b)  the same over pack_padded_sequence, scores of real words only
    (c)  a Python loop of nn.RNNCell or nn.LSTMCell under autograd
    (d)  the assignment's formulas in NumPy
    (e)  torch.compile of (a)
    (f)  (b) with F.linear_cross_entropy in chunks

Every loss and gradient is compared with ours before anything is timed. A time is the median over turns that are spread
over the whole race; its quartiles stand beside it. What is shorter than a turn runs several times in it, and the first
of these is not timed.

    step.py       a training step of three shapes, in float32 and under autocast to bfloat16
    layers.py     torch_caption.layers beside torch.nn's
    modes.py      which modes of differentiation work, of both
    growth.py     with T, H, N and V
    decoding.py   greedy captions
    loading.py    batches from HDF5
    memory.py     the peak of the loss over a large vocabulary
    epoch.py      training.py's own loop
    distributed.py  several processes: on paper for many, measured for two
    checkpoint.py saving and loading a run, beside a step
    gpu.py        the step on a GPU, launched, captured and compiled
"""
