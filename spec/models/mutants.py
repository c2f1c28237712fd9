"""The protocol with one rule changed: what each rule is for, shown by what goes wrong without it.

A mutant is a choice of flags of `Rules` (or of `CommitRules`), and the configuration in which it is to be caught.
Some changes are not caught, and are listed with `survives`: either another rule covers the same ground (then a
pair of changes is listed too, and caught), or the rule serves something that I1 to I6 do not speak of. That they
survive is checked like everything else: in their configuration, and by `--mutants` in all ordinary ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from spec.models.group_commit import CommitRules, search_commits
from spec.models.resume import CONFIGS, LARGER, Config, Rules, search

GROUP_COMMIT = "group-commit"
LIMIT = 60_000
BY_NAME = {config.name: config for config in CONFIGS + LARGER}


@dataclass(frozen=True)
class Mutant:
    """A change of the rules. `survives` says why no invariant is hurt; empty: it is to be caught."""

    name: str
    rule: str
    rules: Rules | CommitRules
    config: str
    survives: str = ""


@dataclass(frozen=True)
class Verdict:
    config: str
    states: int
    violation: str
    trace: tuple[str, ...]


def run(mutant: Mutant, config: Config | None = None) -> Verdict:
    """Searches the mutant's configuration, or another."""
    if isinstance(mutant.rules, CommitRules):
        frames, crashes = 2, 1
        found = search_commits(mutant.rules, frames, crashes)
        return Verdict(GROUP_COMMIT, found.states, found.violation, found.trace)
    config = config or BY_NAME[mutant.config]
    result = search(config, mutant.rules, LIMIT)
    return Verdict(config.name, result.states, result.violation, tuple(result.trace))


def judged(*questions: str) -> Rules:
    return replace(Rules(), judging_order=questions)


MUTANTS = (
    # The one rule.
    Mutant("sends-before-commit", "commit, then send", Rules(sends_after_commit=False), "resume"),
    Mutant("acks-before-commit", "acknowledge only what is committed",
           Rules(acks_after_commit=False), "resume"),
    # Rule 0.
    Mutant("attached-kept", "0: the dialler leaves its attached connection",
           Rules(dialler_leaves_attached=False), "redial"),
    Mutant("dials-kept", "0: the dialler drops its unaccepted dials",
           Rules(dialler_drops_dials=False), "crossed",
           "attaching closes them (rule 2), and what they claimed is judged only when fresh"),
    Mutant("accepts-kept", "0: the dialler drops the accepts it has pending",
           Rules(dialler_drops_accepts=False), "crossed",
           "a count that moves under a pending accept is found at confirm (rule 4)"),
    Mutant("commits-not-awaited", "0: claims wait until all taken is committed",
           CommitRules(waits_for_commits=False), GROUP_COMMIT,
           "claims are from disk, and duplicates are dropped by the count of taken frames (rule 6)"),
    Mutant("claims-of-taken", "0: claims are values on disk",
           CommitRules(claims="taken"), GROUP_COMMIT,
           "when all taken is committed the two counts are one"),
    Mutant("claims-of-taken, commits-not-awaited", "0: both",
           CommitRules(claims="taken", waits_for_commits=False), GROUP_COMMIT),
    Mutant("acks-of-taken", "acknowledge only what is committed",
           CommitRules(acknowledges="taken"), GROUP_COMMIT),
    # Rule 1.
    Mutant("epoch-after-confirm", "1: the initiator commits the epoch before confirm",
           Rules(epoch_before_confirm=False), "resume"),
    Mutant("proven-at-accept", "1: the initiator proves at the first ack or frame",
           Rules(initiator_proves="accept"), "resume"),
    Mutant("proven-before-the-epoch", "1: nothing is proven that is not on disk",
           Rules(epoch_before_confirm=False, initiator_proves="accept"), "resume"),
    Mutant("epoch-above-the-responder's", "1: the new epoch is above both",
           Rules(new_epoch="above the responder's"), "resume"),
    Mutant("epoch-above-the-initiator's, taken", "1 and 2: the same at the responder, which takes an old epoch",
           replace(judged("retry", "rollback", "policy"), new_epoch="above the initiator's"), "crossed"),
    Mutant("initiator-takes-old-epoch", "2 (silent in the design): the initiator too closes at an epoch <= its own",
           Rules(initiator_refuses_old_epoch=False), "resume",
           "attaching has closed the dials whose accept could come late"),
    Mutant("initiator-proves-nothing", "1: the initiator proves at all",
           Rules(initiator_proves="never"), "rollback",
           "counts and digests find every rollback by which histories differ; proven finds more, and sooner"),
    Mutant("responder-commits-no-epoch", "1: the responder commits the epoch at confirm",
           Rules(responder_commits_epoch=False), "resume"),
    Mutant("responder-proves-nothing", "1: the responder commits proven at confirm",
           Rules(responder_proves=False), "copy"),
    # Rule 2.
    Mutant("judged-at-first-message", "2: the responder judges at confirm",
           Rules(responder_judges_at="resume"), "resume"),
    Mutant("initiator-judges-nothing", "2: the initiator judges at accept",
           Rules(initiator_judges=False), "rollback"),
    Mutant("responder-judges-nothing", "2: the responder judges at confirm",
           judged("old epoch", "retry", "policy"), "rollback"),
    Mutant("attached-twice", "2 and 5: attaching replaces the old connection",
           Rules(attaching_closes_attached=False), "resume"),
    Mutant("pending-kept", "2: attaching closes other accepts and dials",
           Rules(attaching_closes_pending=False), "resume"),
    Mutant("old-epoch-taken", "2: a new epoch <= mine is closed",
           judged("retry", "rollback", "policy"), "resume",
           "attaching has closed every accept that could be confirmed late"),
    Mutant("alarm-before-old-epoch", "2: the old epoch comes first",
           judged("rollback", "old epoch", "retry", "policy"), "resume",
           "attaching has closed every accept that could be confirmed late"),
    Mutant("alarm-before-retry", "2: rule 4 comes before rule 3",
           judged("old epoch", "rollback", "retry", "policy"), "redial",
           "frames taken since only raise my received, and the initiator sent them before it quiesced"),
    Mutant("policy-first", "2: policy comes last",
           judged("policy", "old epoch", "retry", "rollback"), "policy",
           "a policy hides an alarm until it is lifted"),
    Mutant("old-epoch-taken, pending-kept", "2: both",
           replace(judged("retry", "rollback", "policy"), attaching_closes_pending=False), "resume"),
    # Rule 3.
    Mutant("epochs-not-compared", "3: epoch and proven", Rules(compares_epochs=False), "copy"),
    Mutant("counts-not-compared", "3: sent, received, acked", Rules(compares_counts=False), "rollback"),
    Mutant("digest-not-compared", "3: the digest", Rules(compares_digest=False), "rollback"),
    # Rule 4.
    Mutant("no-retry", "4: a count that moved", judged("old epoch", "rollback", "policy"), "copy-both"),
    Mutant("retry-by-disk", "4: by the count of taken frames",
           CommitRules(retry="disk"), GROUP_COMMIT,
           "duplicates are dropped by the count of taken frames (rule 6)"),
    Mutant("retry-by-disk, drops-by-disk", "4 and 6: both",
           CommitRules(retry="disk", drops_by="disk"), GROUP_COMMIT),
    # Rule 5.
    Mutant("replaced-at-first-message", "5: the old connection stays until confirm",
           Rules(replaces_at="resume"), "replay"),
    Mutant("no-first-ack", "5: the responder's ack comes first",
           Rules(responder_acks_first=False), "resume",
           "accept has told the counts; the ack tells the initiator that its confirm was taken"),
    # Rule 6.
    Mutant("numbers-from-acked", "6: retransmission starts at the claims",
           Rules(numbers_from="acked"), "resume"),
    Mutant("drops-by-disk", "6: duplicates are dropped by the count of taken frames",
           CommitRules(drops_by="disk"), GROUP_COMMIT,
           "when all taken is committed (rule 0) and stays so (rule 4) the two counts are one"),
    Mutant("drops-by-disk, commits-not-awaited", "6 and 0: both",
           CommitRules(drops_by="disk", waits_for_commits=False), GROUP_COMMIT),
    Mutant("counts-from-current", "6: a receiver counts from what it claimed",
           CommitRules(numbers_from="current"), GROUP_COMMIT,
           "nothing moves after the claims (rules 0 and 4)"),
    Mutant("counts-from-current, attached-kept", "6 and 0: both",
           CommitRules(numbers_from="current", dialler_leaves=False), GROUP_COMMIT),
    # Rule 7.
    Mutant("nobody-refuses-crossed", "7: the higher refuses", Rules(crossed_refuses="nobody"), "crossed"),
    Mutant("both-refuse-crossed", "7: the lower does not refuse", Rules(crossed_refuses="both"), "crossed"),
    Mutant("always-refuses-crossed", "7: only for the first attempt",
           Rules(crossed_attempts="always"), "crossed"),
    Mutant("lower-drops-its-dial", "7: the lower keeps its own attempt",
           Rules(lower_keeps_dial=False), "replay"),
    # Rule 10.
    Mutant("never-stale", "10: `stale` at all", Rules(stale="never"), "copy"),
    Mutant("stale-only-if-older", "10: a diverged copy is a stranger too", Rules(stale="older"), "copy"),
    Mutant("strangers-heeded", "10: what a stranger says of itself is ignored",
           Rules(heeds_strangers=True), "copy"),
    Mutant("heard-while-open", "10: heard within 45 s, open or not", Rules(heard_means="open"), "copy-both"),
    Mutant("accept-is-not-heard", "10: a fresh accept is heard", Rules(accept_is_heard=False), "copy-cut"),
    # Negotiation.
    Mutant("not-provisional", "negotiation: provisional until the first ack",
           Rules(provisional=False), "dial-only"),
    Mutant("late-answer-ignored", "negotiation: a late answer aborts",
           Rules(late_answer_aborts=False), "negotiation",
           "the answerer hears no ack, cuts, and being provisional ends"),
    Mutant("confirm-ends-provisional", "negotiation: a confirm that overtakes the first ack (silent in the design)",
           Rules(confirm_promotes=False), "negotiation",
           "both readings end well: the session goes on, or both are told that it ended"),
    # Ends and refusals.
    Mutant("no-last-ack", "ends: a last ack before op:abort", Rules(ack_before_abort=False), "ends-late-acks"),
    Mutant("tombstone-is-silent", "ends: a tombstone answers", Rules(tombstone_answers=False), "ends"),
    Mutant("unknown-never-ends", "refusals: `unknown` ends, at once or after three tries",
           Rules(unknown_ends=False), "ends"),
    Mutant("refuse-not-heeded-when-attached", "refusals: heeded until the first ack",
           Rules(heeds_refuse_until_ack=False), "rollback",
           "the connection ends too, and the next resume says it again"),
    Mutant("policy-holds-nothing", "refusals: after `policy` nobody dials unasked",
           Rules(policy_holds_dials=False), "policy",
           "dialling on is in vain, not wrong"),
)  # fmt: skip
