"""Programming, as learners ask about it. Every snippet runs, and prints what the text says."""

from apps.common.constants import Level, Subject
from apps.tutor.lessons.lesson import Lesson

LESSONS: tuple[Lesson, ...] = (
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        ("What is a variable?", "explain variables in Python", "What does x = 5 mean?"),
        "A variable is a name for a value.\n```python\nage = 12\nage = age + 1\nprint(age)\n```\nThe first line gives "
        "12 the name age. The second line takes the value, adds 1 and stores the result under the same name. "
        "It prints 13. The sign = does not mean that both sides are equal: it stores the right side on the left.",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        ("What is a loop?", "how does a for loop work", "Explain for loops in Python."),
        "A loop repeats lines.\n```python\nfor number in range(1, 4):\n    print(number * 2)\n```\nrange(1, 4) gives 1, "
        "2 and 3: the end is left out. For each of them the indented line runs once. It prints 2, 4 and 6, each on "
        "its own line. What would you change to get 8 as well?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        ("What is a function?", "how do I write a function in Python", "Why do we use functions?"),
        "A function is a piece of code with a name, which you can use again and again.\n```python\ndef area(width, "
        "height):\n    return width * height\n\nprint(area(3, 4))\n```\nwidth and height are its parameters. return "
        "hands back the result. It prints 12. Functions keep you from writing the same lines twice. Can you write one "
        "that doubles a number?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.INTERMEDIATE,
        ("What is recursion?", "explain recursion with an example", "How can a function call itself?"),
        "Recursion means that a function calls itself for a smaller case, until the case is so small that the answer "
        "is known.\n```python\ndef factorial(n):\n    if n <= 1:\n        return 1\n    return n * factorial(n - 1)\n\n"
        "print(factorial(4))\n```\nThe if is the base case. factorial(4) is 4 * 3 * 2 * 1. It prints 24. Without a base "
        "case it would never end.",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        ("What is a list in Python?", "how do lists work", "How do I store many values?"),
        "A list holds values in order.\n```python\nfruits = ['apple', 'pear']\nfruits.append('plum')\nprint(fruits[0], "
        "len(fruits))\n```\nappend adds one at the end. Counting begins at 0, so fruits[0] is the first. len tells how "
        "many there are. It prints apple 3. What would fruits[2] be?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        ("What is a dictionary in Python?", "explain dict", "How do I look up a value by name?"),
        "A dictionary stores values under keys.\n```python\nages = {'Ann': 12, 'Ben': 14}\nages['Cem'] = 13\n"
        "print(ages['Ben'])\n```\nThe first line makes two entries. The second adds one. The third looks up the value of "
        "a key. It prints 14. A key that is not there raises a KeyError; ages.get('Dan') gives None instead.",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        ("How do I use if and else?", "explain if statements", "How does a program make decisions?"),
        "if runs a block only when a condition is true.\n```python\ntemperature = 8\nif temperature < 10:\n    "
        "print('cold')\nelse:\n    print('mild')\n```\n8 is less than 10, so the first block runs. It prints cold. Mind "
        "the colon and the indentation. To compare for equality write ==, with two signs. What is printed for 10?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        ("Why does my loop never end?", "my while loop runs forever", "What is an infinite loop?"),
        "A while loop runs as long as its condition is true. If nothing in it changes the condition, it never ends.\n"
        "```python\ncount = 3\nwhile count > 0:\n    count = count - 1\nprint(count)\n```\nHere each round makes count "
        "smaller, until 0 > 0 is false. It prints 0. Look at your loop: which line changes what the condition tests?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        (
            "What does IndexError: list index out of range mean?",
            "list index out of range",
            "Why do I get an IndexError?",
        ),
        "You asked a list for a place that it does not have. A list of 3 values has the places 0, 1 and 2.\n```python\n"
        "letters = ['a', 'b', 'c']\nprint(letters[len(letters) - 1])\n```\nlen(letters) is 3, and the last place is one "
        "less. It prints c. letters[3] would raise the error. Which index does your program use, and how long is the "
        "list at that time?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        ("How do I reverse a string in Python?", "reverse a string", "How can I turn a word around?"),
        "A slice with step -1 goes backwards.\n```python\nword = 'stone'\nprint(word[::-1])\n```\nThe two colons leave "
        "start and end open, and -1 is the step. It prints enots. Strings cannot be changed, so this makes a new one. "
        "How could you use it to test whether a word reads the same both ways?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.INTERMEDIATE,
        ("What is the difference between a list and a tuple?", "list vs tuple", "When should I use a tuple?"),
        "Both hold values in order. A list can be changed, a tuple cannot.\n```python\npoint = (2, 5)\nx, y = point\n"
        "print(x + y)\n```\nThe second line takes the tuple apart. It prints 7. Use a tuple for things that belong "
        "together and stay as they are, such as a point, and a list for things that come and go.",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.INTERMEDIATE,
        ("What is a class?", "explain classes and objects", "What is object-oriented programming?"),
        "A class is a plan for objects, which have data and functions that work on it.\n```python\nclass Counter:\n    "
        "def __init__(self):\n        self.value = 0\n\n    def step(self):\n        self.value += 1\n\ncounter = "
        "Counter()\ncounter.step()\nprint(counter.value)\n```\n__init__ prepares a new object, and self is that object. "
        "It prints 1. Each Counter has its own value.",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.ADVANCED,
        ("What is big O notation?", "explain time complexity", "What does O(n log n) mean?"),
        "Big O tells how the work grows with the input size n, without constant factors. Looking at each item once is "
        "O(n). Comparing all pairs is O(n²). Binary search halves the range each time, so it is O(log n). Good sorting "
        "is O(n log n). For n = 1000 that is about 10,000 steps, while n² is 1,000,000. It describes growth, not the "
        "time on your machine.",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        ("How do I find a bug in my program?", "how to debug", "My code does not work. What should I do?"),
        "Go step by step. 1. Read the last line of the error message: it says what is wrong and in which line. 2. Make "
        "the smallest input that fails. 3. Print the values just before that line, and compare them with what you "
        "expect. 4. Change one thing at a time. 5. Explain the code aloud, line by line. What does your error message "
        "say?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.INTERMEDIATE,
        ("What is an API?", "explain what an API is", "How do programs talk to each other?"),
        "An API is a set of requests that a program answers, with rules for how to ask. You do not need to know how it "
        "works inside. A weather service, for example, takes the name of a city and answers with the temperature, often "
        "as JSON over HTTP. It is like a menu in a restaurant: you order by name, and the kitchen does the rest.",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.INTERMEDIATE,
        ("How do I get all rows with SQL?", "explain SELECT", "How do I filter rows in SQL?"),
        "SELECT reads rows from a table.\n```sql\nSELECT name, age FROM learners WHERE age >= 12 ORDER BY name;\n```\n"
        "After SELECT come the columns, after FROM the table. WHERE keeps only the rows for which the condition is "
        "true. ORDER BY sorts them. SELECT * would take all columns. How would you get those younger than 12?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.BEGINNER,
        (
            "How do I add up a list of numbers?",
            "sum of a list in python",
            "Write code that adds the numbers in a list.",
        ),
        "Go through the list and keep a running total.\n```python\nnumbers = [4, 7, 1]\ntotal = 0\nfor number in "
        "numbers:\n    total += number\nprint(total)\n```\ntotal begins at 0, and each round adds one number. It prints "
        "12. Python can do it in one step too: sum(numbers). What would total be for an empty list?",
    ),
    Lesson(
        Subject.PROGRAMMING,
        Level.INTERMEDIATE,
        ("What is a list comprehension?", "explain list comprehensions", "How do I square all numbers in a list?"),
        "A list comprehension builds a list in one line.\n```python\nsquares = [n * n for n in range(5) if n % 2 == 0]\n"
        "print(squares)\n```\nRead it as: n times n, for each n from 0 to 4, if n is even. It prints [0, 4, 16]. It does "
        "the same as a loop with append, but shorter. How would you get the squares of the odd numbers?",
    ),
)
