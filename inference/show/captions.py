"""What the sections of a report say under their pictures: what there is to see, and what one should look for."""

LEARNING_CURVES = """
Training loss (faint: every step; bold: mean of an epoch over seeds) and the validation set after every epoch (faint:
a seed). The curves should have levelled off; validation that turns while training goes on falling is overfitting, and
a gap between served and summed out is what serving by one expert costs.
"""
LOADS = """
Which share of a training batch every expert processed (seed {seed}, means over neighbouring steps). Bands of equal
width are balance; a band that vanishes is a dead expert, a gray one at the top is what was dropped.
"""
ROUTING = """
The routing of training batches, mean over seeds. Drops and the fullest expert's load should settle low; an entropy
that falls to 0 at once is a router that has stopped exploring, and fewer effective experts than there are is a
collapse on its way.
"""
WEIGHTS = """
How evenly the importance weights spread: an effective sample size near 1 costs nothing; near 0, a few datapoints
carry the gradient.
"""
DRAWN_WEIGHTS = """
At the right the weights of one draw of the model of seed {seed}: {words}. Look for a long tail at the right; a Pareto
k above 0.7 means that it is too heavy for averages to be trusted.
"""
LINE = """
What the router thinks of every input, and the test set in the color of the expert that serves it. The probabilities
should change where the data change their law, and every expert's line should follow its own points.
"""
PLANE = """
The plane of the inputs in the experts' colors, mixed by the router's probabilities, and the test set in the color of
the expert that serves it. Pure colors are sure routers; points unlike their surroundings were moved by capacity.
"""
COMPONENTS = """
Inputs of the test set in the plane where they vary most, each as its {label}, in the color of the expert that serves
it. Patches of one color are regions that an expert has made its own.
"""
IMAGES = """
What every expert sees on average, and how many of the shown datapoints it serves; white is the mean of the training
data. Different images are experts that specialize; pale ones see a bit of everything.
"""
NOT_POINTS = "The inputs are not points of a space: the map shows the router's log-probabilities instead."
LOGITS = """
{layer}Log-probabilities of the router for datapoints of the test set, in the color of the expert that was drawn, in
the plane where they vary most. Colors that come apart are a router that has made up its mind; mixed colors are
choices that are still open, or that capacity turned down.
"""
ASSIGNMENT = """
{layer}A draw for {number} datapoints of the test set, {names}; the width of a line is the router's probability of
what was drawn. Thin lines are assignments that the router did not care for much; dashed lines to hollow datapoints
are drops.
"""
EXCHANGE = """
{layer}The exchange graph of that draw: a → b costs the least loss of perturbed score for which a datapoint moves from
expert a to b; at most 0 where a has a free slot. Cheap edges are datapoints on the fence; a high shadow price is an
expert in demand beyond its capacity.
"""
NO_EXCHANGE = "{name} is not a matching: it does not maximize a score, so there is no exchange graph to show."
EXPERT_USE = """
Where the test set's datapoints of every {label} are served (seed {seed}). Dark cells are experts that have
specialized; a column that is pale all over belongs to an expert with little to do.
"""
