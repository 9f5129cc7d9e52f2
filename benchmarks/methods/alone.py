"""No communication at all: each process by itself; and a single process, where there is only one."""

from __future__ import annotations

import sys

from methods.task import Course, Task, loss_of


def main() -> None:
    course = Course(Task.parse(sys.argv[1]))
    for inputs, labels in course.batches():
        course.optimizer.zero_grad()
        loss_of(course.model, inputs, labels).backward()  # type: ignore[no-untyped-call]
        course.optimizer.step()
    course.finish()


if __name__ == "__main__":
    main()
