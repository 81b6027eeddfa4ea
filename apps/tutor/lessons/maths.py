"""Ideas of mathematics, as learners ask about them."""

from apps.common.constants import Level, Subject
from apps.tutor.lessons.lesson import Lesson

LESSONS: tuple[Lesson, ...] = (
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        (
            "Why is the sum of two even numbers even?",
            "even plus even is even, but why",
            "Show me that adding two even numbers gives an even number.",
        ),
        "An even number is 2 times some whole number. Step 1: call the two numbers 2a and 2b. Step 2: add them: "
        "2a + 2b. Step 3: take out the 2: 2a + 2b = 2(a + b). That is 2 times a whole number, so it is even. Check "
        "with numbers: 6 + 8 = 14, and 14 = 2 times 7. What do you get if you add two odd numbers?",
    ),
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        ("What is a prime number?", "explain prime numbers", "How do I know if a number is prime?"),
        "A prime number is a whole number greater than 1 that can be divided without a rest only by 1 and by itself. "
        "The first ones are 2, 3, 5, 7, 11 and 13. To test 29: try 2, 3 and 5. None divides it, and 7 times 7 is 49, "
        "which is more than 29, so we may stop. 29 is prime. 1 is not prime, for it has only one divisor. Is 21 prime?",
    ),
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        ("What is a fraction?", "explain fractions to me", "What do the two numbers in a fraction mean?"),
        "A fraction tells a part of a whole. The lower number, the denominator, says into how many equal parts the "
        "whole is cut. The upper number, the numerator, says how many of them you have. Cut a pizza into 8 equal "
        "slices and eat 3: you have eaten 3/8 of it, and 5/8 is left. Check: 3/8 + 5/8 = 8/8, the whole pizza.",
    ),
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        ("How do I add fractions?", "add 1/2 and 1/3", "How do you add fractions with different denominators?"),
        "Fractions can be added when their denominators are the same. Take 1/2 + 1/3. Step 1: find a common "
        "denominator. Both 2 and 3 go into 6. Step 2: 1/2 = 3/6 and 1/3 = 2/6. Step 3: add the numerators: 3/6 + 2/6 = "
        "5/6. Check: 1/2 is 0.5 and 1/3 is about 0.33, together about 0.83, and 5/6 is about 0.83.",
    ),
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        ("How do I solve 2x + 3 = 11?", "solve 2x+3=11 step by step", "How do you solve a simple equation?"),
        "We want x alone. Whatever we do, we do on both sides. Step 1: subtract 3: 2x + 3 - 3 = 11 - 3, so 2x = 8. "
        "Step 2: divide by 2: x = 8 / 2 = 4. Check: 2 times 4 plus 3 is 8 + 3 = 11. It is right, so x = 4. Can you "
        "solve 3x + 1 = 10 in the same way?",
    ),
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        ("Why can't you divide by zero?", "what is 5 divided by 0", "Why is division by zero not allowed?"),
        "Dividing undoes multiplying. 12 / 3 = 4, because 4 times 3 is 12. Now try 5 / 0. We would need a number that "
        "times 0 gives 5. But every number times 0 is 0, so there is none. And for 0 / 0 every number would do, so "
        "there is no one answer. That is why division by zero is left undefined.",
    ),
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        ("Why is negative times negative positive?", "minus times minus is plus, why", "Why does (-2) x (-3) make 6?"),
        "Look at a pattern. Step 1: (-2) times 2 = -4, (-2) times 1 = -2, (-2) times 0 = 0. Each time the second "
        "number goes down by 1, the result goes up by 2. Step 2: go on: (-2) times (-1) = 2, (-2) times (-2) = 4, "
        "(-2) times (-3) = 6. So minus times minus gives plus. What is (-4) times (-5)?",
    ),
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        ("How do percentages work?", "what is 20% of 50", "How do I calculate a percentage?"),
        "Percent means out of a hundred. To find 20% of 50: Step 1: write 20% as 20/100 = 0.2. Step 2: multiply: 0.2 "
        "times 50 = 10. So 20% of 50 is 10. Check: 10% of 50 is 5, and twice that is 10. A trick: find 10% first by "
        "dividing by 10, and then build the rest from it. What is 30% of 80?",
    ),
    Lesson(
        Subject.MATH,
        Level.INTERMEDIATE,
        (
            "What is the Pythagorean theorem?",
            "explain Pythagoras",
            "How do I find the longest side of a right triangle?",
        ),
        "In a right triangle the squares of the two short sides add up to the square of the longest side: "
        "a² + b² = c². The longest side, c, is opposite the right angle. An example: a = 3 and b = 4. Step 1: 9 + 16 = "
        "25. Step 2: c is the square root of 25, which is 5. Check: 5 times 5 = 25. What is c for a = 6 and b = 8?",
    ),
    Lesson(
        Subject.MATH,
        Level.INTERMEDIATE,
        ("What is a derivative?", "explain derivatives simply", "Why is the derivative of x^2 equal to 2x?"),
        "A derivative tells how fast a function changes. Think of a square with side x: its area is x². Let the side "
        "grow by a tiny h. Step 1: the new area is (x + h)² = x² + 2xh + h². Step 2: it grew by 2xh + h². Step 3: "
        "divide by h: 2x + h. When h goes to 0, 2x is left. So the derivative of x² is 2x. At x = 3 it is 6.",
    ),
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        ("What is the difference between mean and median?", "mean vs median", "How do I find the average?"),
        "Both tell what is typical. The mean is the sum divided by how many there are. For 2, 3 and 10 it is 15 / 3 = "
        "5. The median is the one in the middle when they are in order: here 3. One very large number pulls the mean "
        "up, but not the median. So for incomes the median often tells more. What are both for 1, 4 and 4?",
    ),
    Lesson(
        Subject.MATH,
        Level.BEGINNER,
        ("How do I find the area of a circle?", "area of a circle formula", "What is pi?"),
        "Pi is how many times the diameter fits around a circle: about 3.14. The area of a circle is pi times the "
        "radius squared: A = pi r². An example: the radius is 3 cm. Step 1: 3 squared is 9. Step 2: 3.14 times 9 is "
        "28.26. So the area is about 28.3 square centimetres. Check: the square around it has 6 times 6 = 36, so the "
        "circle must be a bit smaller.",
    ),
    Lesson(
        Subject.MATH,
        Level.INTERMEDIATE,
        ("What is a function?", "explain functions in maths", "What does f(x) mean?"),
        "A function is a rule that gives exactly one output for each input. We write f(x) for the output that belongs "
        "to x. For f(x) = 2x + 1: Step 1: take the input, say 3. Step 2: double it: 6. Step 3: add 1: 7. So f(3) = 7. "
        "Check with the rule: 2 times 3 plus 1 is 7. One input never has two outputs. What is f(5)?",
    ),
    Lesson(
        Subject.MATH,
        Level.ADVANCED,
        (
            "Prove that the square root of 2 is irrational.",
            "why is sqrt(2) irrational",
            "Is the square root of 2 a fraction?",
        ),
        "Suppose it were p/q in lowest terms. Then p² = 2q², so p² is even, and hence p is even: p = 2k. Then "
        "4k² = 2q², so q² = 2k², and q is even as well. But then p and q share the factor 2, which contradicts lowest "
        "terms. So no such fraction exists.",
    ),
)
