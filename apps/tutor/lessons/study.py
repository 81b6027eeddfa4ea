"""How to study, as learners ask about it."""

from apps.common.constants import Level, Subject
from apps.tutor.lessons.lesson import Lesson

LESSONS: tuple[Lesson, ...] = (
    Lesson(
        Subject.STUDY,
        Level.BEGINNER,
        (
            "I have an exam in a week. How should I study?",
            "make me a study plan for one week",
            "exam next week, help me plan",
        ),
        "Here is a plan for seven days. Day 1: list all topics and mark what you find hard. Days 2 and 3: learn the "
        "hard ones, in blocks of 25 minutes with short breaks. Day 4: do practice questions without your notes. Day 5: "
        "go over what went wrong. Day 6: do an old exam with a clock. Day 7: look through your notes, and sleep early. "
        "Check each evening: can you explain today's topic in your own words? Which subject is it?",
    ),
    Lesson(
        Subject.STUDY,
        Level.BEGINNER,
        ("What is spaced repetition?", "how does spaced repetition work", "How often should I repeat what I learn?"),
        "Spaced repetition means that you repeat a thing just before you would forget it. Repeat it after 1 day, then "
        "after 3 days, after a week, after two weeks. If you remember it, wait longer. If not, begin again with 1 day. "
        "Use cards with a question on one side. Goal: ten cards a day. Check: how many could you answer without "
        "looking?",
    ),
    Lesson(
        Subject.STUDY,
        Level.BEGINNER,
        ("How can I remember things better?", "I forget everything I read", "What is active recall?"),
        "Reading again feels good, but it helps little. Test yourself instead: that is called active recall. Step 1: "
        "read one page. Step 2: close the book. Step 3: write down all you remember. Step 4: look up what is missing. "
        "Do it again tomorrow and in three days. Check: after a week, write the main points on an empty sheet. How "
        "many did you get?",
    ),
    Lesson(
        Subject.STUDY,
        Level.BEGINNER,
        ("How do I stay focused when I study?", "i can't concentrate", "I get distracted all the time. What can I do?"),
        "Make it easy to begin. Put your phone in another room. Choose one small goal, such as five exercises. Set a "
        "timer to 25 minutes, and do only that. Then take a break of 5 minutes. After four rounds take a longer one. "
        "Write down what you finished. Check at the end of the week: on which days did it work best, and why?",
    ),
    Lesson(
        Subject.STUDY,
        Level.BEGINNER,
        (
            "Make a plan to learn Python in a month.",
            "i want to learn programming in 4 weeks",
            "How do I start learning to code?",
        ),
        "Week 1: variables, numbers, text and if. Goal: a small quiz game. Week 2: loops, lists and functions. Goal: a "
        "to-do list. Week 3: dictionaries, files and errors. Goal: save your list in a file. Week 4: build something "
        "you want, a little every day. Plan 30 minutes a day, and write code in each of them. Check every Sunday: can "
        "you write this week's program again without looking?",
    ),
    Lesson(
        Subject.STUDY,
        Level.INTERMEDIATE,
        ("How do I take good notes?", "note taking tips", "What is the best way to take notes in class?"),
        "Do not write down every word. Leave a narrow column on the left and some room below. During class, write key "
        "ideas on the right. On the same evening, write questions on the left that the notes answer. Below, sum up the "
        "page in two sentences. To review, cover the right side and answer your questions. Check once a week: which "
        "questions could you not answer?",
    ),
    Lesson(
        Subject.STUDY,
        Level.BEGINNER,
        ("How much should I sleep before an exam?", "should I study all night", "Is it good to stay up late to learn?"),
        "Sleep is part of learning: while you sleep, your brain stores what you learned. Most teenagers need 8 to 10 "
        "hours, most adults at least 7. A night without sleep makes you slower and more forgetful in the exam. So stop "
        "in time: look over your notes once, pack your bag, and go to bed. How many hours did you sleep last night?",
    ),
)
