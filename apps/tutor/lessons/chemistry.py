"""Chemistry, as learners ask about it."""

from apps.common.constants import Level, Subject
from apps.tutor.lessons.lesson import Lesson

LESSONS: tuple[Lesson, ...] = (
    Lesson(
        Subject.CHEMISTRY,
        Level.BEGINNER,
        ("What is an atom?", "explain atoms", "What are atoms made of?"),
        "An atom is the smallest piece of an element. In its middle is the nucleus, with protons, which are positive, "
        "and neutrons, which have no charge. Around it are electrons, which are negative. The number of protons "
        "decides which element it is: hydrogen has 1, carbon has 6, oxygen has 8. An atom has as many electrons as "
        "protons, so it is neutral. How many electrons has a carbon atom?",
    ),
    Lesson(
        Subject.CHEMISTRY,
        Level.BEGINNER,
        ("How do I balance H2 + O2 -> H2O?", "balance hydrogen plus oxygen", "Balance the equation for making water."),
        "Count the atoms on both sides. Left: 2 hydrogen, 2 oxygen. Right: 2 hydrogen, 1 oxygen. Oxygen does not match. "
        "Put a 2 before water: H2 + O2 -> 2 H2O. Now oxygen is 2 and 2, but hydrogen is 2 and 4. Put a 2 before "
        "hydrogen: 2 H2 + O2 -> 2 H2O. Check: 4 hydrogen and 2 oxygen on each side. Two molecules of hydrogen and one "
        "of oxygen make two of water.",
    ),
    Lesson(
        Subject.CHEMISTRY,
        Level.INTERMEDIATE,
        ("What is a mole?", "explain the mole in chemistry", "How many particles are in a mole?"),
        "A mole is a number of particles, like a dozen, only much larger: about 6.022 times 10^23. It is chosen so "
        "that a mole of a substance has as many grams as its formula mass says. Water, H2O, has 1 + 1 + 16 = 18, so "
        "one mole of water is 18 g. Moles = mass divided by molar mass: 36 g of water is 36 / 18 = 2 mol. How many "
        "moles are 9 g of water?",
    ),
    Lesson(
        Subject.CHEMISTRY,
        Level.BEGINNER,
        ("What is an acid?", "acids and bases", "What does pH mean?"),
        "An acid gives off hydrogen ions, H+, in water. A base takes them up. The pH tells how many there are: below 7 "
        "is acidic, 7 is neutral, above 7 is basic. Lemon juice, which has citric acid, has a pH of about 2. Soap is "
        "basic. An acid and a base neutralise each other: HCl + NaOH -> NaCl + H2O, hydrochloric acid and sodium "
        "hydroxide make salt and water.",
    ),
    Lesson(
        Subject.CHEMISTRY,
        Level.INTERMEDIATE,
        ("What is a chemical bond?", "ionic vs covalent bonds", "How do atoms hold together?"),
        "A bond holds atoms together, because together they have less energy. In an ionic bond one atom gives "
        "electrons to another, and the opposite charges attract: sodium gives one to chlorine, which makes sodium "
        "chloride, NaCl. In a covalent bond atoms share electrons, as in water, H2O. Metals and non-metals mostly form "
        "ionic bonds, two non-metals covalent ones. What kind of bond is in CO2?",
    ),
    Lesson(
        Subject.CHEMISTRY,
        Level.BEGINNER,
        ("What happens when something burns?", "what is combustion", "Why does fire need air?"),
        "Burning is a reaction with oxygen that gives off heat and light. Natural gas is mostly methane. It burns like "
        "this: CH4 + 2 O2 -> CO2 + 2 H2O. Methane and oxygen make carbon dioxide and water. Check: 1 carbon, 4 "
        "hydrogen and 4 oxygen atoms on each side. Fire needs air because air brings the oxygen. That is why a lid "
        "puts out a candle.",
    ),
    Lesson(
        Subject.CHEMISTRY,
        Level.BEGINNER,
        ("Why does salt dissolve in water?", "how does salt dissolve", "What happens to salt in water?"),
        "Table salt is sodium chloride, NaCl. It is built of charged particles: Na+ and Cl-. A water molecule has a "
        "slightly negative side, the oxygen, and a slightly positive side, the hydrogen. Water molecules surround the "
        "ions and pull them away from the crystal, one by one. The salt is still there, only spread out. You get it "
        "back when the water evaporates.",
    ),
    Lesson(
        Subject.CHEMISTRY,
        Level.BEGINNER,
        ("What are solids, liquids and gases?", "states of matter", "Why does ice melt?"),
        "In a solid, the particles hold fast to each other and only vibrate. In a liquid they slide past each other. "
        "In a gas they fly freely and fill all the room. Heat makes particles move more. Ice, which is solid water, "
        "melts at 0 °C, because then the particles move too much to keep their places. At 100 °C water boils. It is "
        "H2O all the time: only its state changes.",
    ),
    Lesson(
        Subject.CHEMISTRY,
        Level.ADVANCED,
        (
            "What is Le Chatelier's principle?",
            "how does pressure shift an equilibrium",
            "Explain chemical equilibrium.",
        ),
        "At equilibrium the forward and the backward reaction are equally fast. Le Chatelier's principle says that a "
        "disturbed equilibrium shifts so as to weaken the disturbance. In N2 + 3 H2 <-> 2 NH3, nitrogen and hydrogen "
        "form ammonia: 4 molecules become 2. Higher pressure shifts it to ammonia. The reaction gives off heat, so a "
        "higher temperature shifts it back. A catalyst shifts nothing: it only speeds up both ways.",
    ),
)
