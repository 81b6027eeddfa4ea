"""Biology, as learners ask about it."""

from apps.common.constants import Level, Subject
from apps.tutor.lessons.lesson import Lesson

LESSONS: tuple[Lesson, ...] = (
    Lesson(
        Subject.BIOLOGY,
        Level.BEGINNER,
        ("What is photosynthesis?", "how do plants make food", "Explain photosynthesis simply."),
        "Photosynthesis is how plants make their food. The leaves take in carbon dioxide from the air, and the roots "
        "take in water. A green substance in the leaves, chlorophyll, catches light from the Sun. With that energy the "
        "plant turns carbon dioxide and water into sugar and oxygen. The sugar feeds the plant. The oxygen goes into "
        "the air, and that matters to us, because we breathe it. Why do plants need light?",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.INTERMEDIATE,
        ("What happens in photosynthesis?", "light reactions and Calvin cycle", "Where in the cell is sugar made?"),
        "Photosynthesis takes place in the chloroplasts. In the light reactions, chlorophyll in the thylakoid "
        "membranes catches light, water is split, oxygen is set free, and the carriers ATP and NADPH are charged. In "
        "the Calvin cycle, in the fluid around them, these carriers give their energy to build sugar from carbon "
        "dioxide. Together: 6 CO2 + 6 H2O -> C6H12O6 + 6 O2. It matters because nearly all food chains begin here.",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.BEGINNER,
        ("What is a cell?", "explain what cells are", "What are living things made of?"),
        "A cell is the smallest part of a living thing that is alive by itself. Your body has many trillions of them. "
        "A thin membrane holds it together and decides what comes in and goes out. The nucleus keeps the DNA, which is "
        "the plan of the cell. Mitochondria release energy from food. Because cells divide, you can grow and heal. "
        "What part of the cell keeps its plan?",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.BEGINNER,
        ("What is DNA?", "what does DNA do", "Why is DNA important?"),
        "DNA is a long molecule in your cells that stores instructions. It looks like a twisted ladder. Its steps are "
        "made of four letters, A, T, C and G. A always pairs with T, and C with G. The order of the letters tells the "
        "cell how to build proteins, and proteins do most of the work in the body. You get half of your DNA from each "
        "parent. Which letter pairs with G?",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.INTERMEDIATE,
        ("What do mitochondria do?", "why are mitochondria called powerhouses", "Explain mitochondria."),
        "Mitochondria are small bodies in the cell where cellular respiration takes place. They use oxygen to release "
        "the energy of sugar, and store it in ATP, which the cell can spend. Their inner membrane is folded, so that "
        "there is more surface for this work. This matters for cells that need much energy: a muscle cell has many "
        "more mitochondria than a skin cell.",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.BEGINNER,
        ("How does the heart work?", "what does the heart do", "Why does my heart beat?"),
        "The heart is a muscle that pumps blood through the body. It has two sides. The right side sends blood to the "
        "lungs, where it takes up oxygen. The left side sends that blood to the rest of the body. Valves work like "
        "doors, so the blood flows one way only. It matters because every cell needs oxygen and food all the time. "
        "When you run, your heart beats faster. Why?",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.BEGINNER,
        ("Why do leaves change colour in autumn?", "why do leaves turn yellow", "Why are leaves red in fall?"),
        "In summer, leaves are full of chlorophyll, which is green and catches light. When days get short and cold, "
        "many trees stop making it and it breaks down. Then yellow and orange pigments, which were there all along, "
        "can be seen. Some trees also make red pigments in autumn. Dropping the leaves helps the tree to save water "
        "in winter.",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.INTERMEDIATE,
        ("What is natural selection?", "how does evolution work", "Explain evolution by natural selection."),
        "Natural selection works in three steps. First, individuals differ, and some differences are inherited. "
        "Second, more young are born than can survive. Third, those whose traits suit their surroundings leave more "
        "offspring, so these traits become more common. Over many generations a population changes: that is "
        "evolution. It matters today, for instance when bacteria become resistant to antibiotics.",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.BEGINNER,
        ("How do we breathe?", "what do lungs do", "What happens when I breathe in?"),
        "When you breathe in, a muscle under your lungs, the diaphragm, moves down, and air flows in. In the lungs the "
        "air reaches millions of tiny sacs, the alveoli. Their walls are very thin. Oxygen passes through them into "
        "the blood, and carbon dioxide passes out of it. Breathing out carries the carbon dioxide away. This matters "
        "because your cells need oxygen to release energy.",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.BEGINNER,
        ("What is the difference between a virus and a bacterium?", "virus vs bacteria", "Are viruses alive?"),
        "Bacteria are living cells. They feed and divide by themselves, and many are useful, such as those in your "
        "gut. A virus is much smaller and is not a cell. It is genetic material in a coat, and it must enter a cell to "
        "be copied. The difference matters: antibiotics act against bacteria, but not against viruses. Against many "
        "viruses vaccines protect us.",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.ADVANCED,
        ("How is a protein made from DNA?", "explain transcription and translation", "What is gene expression?"),
        "It takes two steps. Transcription: RNA polymerase reads one strand of the gene and builds messenger RNA. In "
        "eukaryotes it is spliced and leaves the nucleus. Translation: a ribosome reads the mRNA three bases at a "
        "time. Each codon stands for an amino acid, which a transfer RNA brings. The chain ends at a stop codon and "
        "folds. The fold matters, because the shape of a protein decides its function.",
    ),
    Lesson(
        Subject.BIOLOGY,
        Level.BEGINNER,
        ("What is a food chain?", "explain food chains", "What is an ecosystem food chain?"),
        "A food chain shows who eats whom. It begins with a plant, which makes food from sunlight. A plant eater "
        "comes next, then a meat eater. For example: grass, rabbit, fox. At each step most of the energy is used up or "
        "lost as heat, so there are fewer foxes than rabbits. It matters because when one kind disappears, all the "
        "others are affected. What would happen if the rabbits disappeared?",
    ),
)
