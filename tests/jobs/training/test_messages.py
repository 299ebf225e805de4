"""Whom a mailbox's requests to stop reach."""

from jobs.training.messages import Mailbox, RunFailed, StepDone


def test_a_run_that_begins_again_is_not_stopped_by_what_its_last_workers_were_asked() -> None:
    mailbox = Mailbox()
    mailbox.request_stop()
    assert mailbox.stop_requested()
    assert mailbox.begin()
    assert not mailbox.stop_requested()


def test_one_trial_is_stopped_without_the_others_and_all_of_them_for_good() -> None:
    mailbox = Mailbox()
    mailbox.request_stop(2)
    assert [mailbox.stop_requested(number) for number in (1, 2)] == [False, True]
    mailbox.request_stop_of_all()
    assert not mailbox.begin(2)
    assert [mailbox.stop_requested(number) for number in (1, 2, 3)] == [True, True, True]


def test_messages_are_taken_once_and_in_their_order() -> None:
    mailbox = Mailbox()
    sent = [StepDone(1), RunFailed("full"), StepDone(2)]
    for message in sent:
        mailbox.put(message)
    assert mailbox.take() == sent
    assert mailbox.take() == []
    assert mailbox.has_failed()
    mailbox.clear()
    assert not mailbox.has_failed()
