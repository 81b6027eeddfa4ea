"""Physics, as learners ask about it."""

from apps.common.constants import Level, Subject
from apps.tutor.lessons.lesson import Lesson

LESSONS: tuple[Lesson, ...] = (
    Lesson(
        Subject.PHYSICS,
        Level.BEGINNER,
        ("Why is the sky blue?", "why does the sky look blue", "Can you explain the colour of the sky?"),
        "Sunlight looks white, but it is a mix of all colours. When it passes through the air, tiny molecules scatter "
        "it in every direction. They scatter blue light much more than red light. This is called Rayleigh scattering. "
        "So blue light reaches your eyes from all over the sky. At sunset the light has a longer way through the air, "
        "most of the blue is scattered out of it, and red is left. What colour would the sky have without air?",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.BEGINNER,
        ("What is light?", "what is light made of", "Explain light to me."),
        "Light is energy that travels as an electromagnetic wave. It needs no material: it crosses empty space at "
        "about 300,000 kilometres per second. The wavelength decides the colour: red is longer, blue is shorter. "
        "Light also comes in small packets, which are called photons. You see a thing when light from it reaches your "
        "eye. Can you name two things that make their own light?",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.BEGINNER,
        ("What is a force?", "explain force", "What does force mean in physics?"),
        "A force is a push or a pull. It can change how fast a thing moves, its direction or its shape. We measure it "
        "in newtons, N. Newton's second law says: force = mass times acceleration, F = m a. So a heavier thing needs a "
        "bigger force for the same change. When you hold an apple of 100 grams, gravity pulls it with about 1 N. "
        "Which forces act on a book on a table?",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.INTERMEDIATE,
        ("What is Newton's second law?", "explain F = m a", "How do force, mass and acceleration belong together?"),
        "Newton's second law says that the net force on a body equals its mass times its acceleration: F = m a. "
        "Force is in newtons, mass in kilograms, acceleration in metres per second squared. An example: a cart of 4 kg "
        "is pulled with 12 N. Its acceleration is a = F / m = 12 N / 4 kg = 3 m/s². Check: 4 kg times 3 m/s² is 12 N. "
        "If you double the mass, the same force gives half the acceleration.",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.BEGINNER,
        ("What is energy?", "explain energy please", "What do people mean by energy in physics?"),
        "Energy is the ability to do work, such as lifting, moving or heating something. It is measured in joules, J. "
        "It has many forms: a moving ball has kinetic energy, a lifted ball has potential energy, food has chemical "
        "energy. The law of conservation says that energy is never made or lost. It only changes its form. When you "
        "brake a bicycle, its kinetic energy becomes heat in the brakes.",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.BEGINNER,
        ("What is gravity?", "why do things fall down", "Why do objects fall to the ground?"),
        "Gravity is the pull between things that have mass. The Earth has a lot of mass, so it pulls everything near "
        "it towards its centre. That is why a dropped ball falls. Near the ground each second of falling makes it "
        "faster by about 9.8 metres per second. Without air a feather and a stone fall equally fast. The Moon pulls "
        "about six times less. How much would you weigh there?",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.INTERMEDIATE,
        ("What is the difference between mass and weight?", "mass vs weight", "Are mass and weight the same?"),
        "Mass tells how much matter a body has. It is measured in kilograms and is the same everywhere. Weight is the "
        "force of gravity on that mass: W = m g, in newtons. On Earth g is about 9.8 N/kg. A mass of 10 kg weighs "
        "about 98 N here. On the Moon g is about 1.6 N/kg, so it weighs about 16 N there. The mass is still 10 kg.",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.INTERMEDIATE,
        ("What is Ohm's law?", "explain voltage, current and resistance", "How do I calculate current?"),
        "Ohm's law says: voltage = resistance times current, V = R I. Voltage is in volts, resistance in ohms, current "
        "in amperes. Think of water: voltage is the pressure, current is the flow, resistance is how narrow the pipe "
        "is. An example: 12 V across 4 ohms. I = V / R = 12 / 4 = 3 A. Check: 4 ohms times 3 A is 12 V. What current "
        "flows if the resistance is doubled?",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.BEGINNER,
        ("What is the difference between speed and velocity?", "speed vs velocity", "How do I calculate speed?"),
        "Speed tells how fast something moves: speed = distance divided by time. A car that goes 150 km in 3 hours has "
        "an average speed of 150 / 3 = 50 km/h. Velocity is speed together with a direction, such as 50 km/h to the "
        "north. A car on a round track can keep its speed, but its velocity changes all the time, because its "
        "direction changes.",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.ADVANCED,
        ("What is entropy?", "explain the second law of thermodynamics", "Why does heat flow from hot to cold?"),
        "Entropy measures in how many microscopic ways a state can be realised: S = k ln W, in joules per kelvin. The "
        "second law says that the entropy of an isolated system does not decrease. If heat Q leaves a body at "
        "temperature T1, it loses Q / T1; a colder body at T2 gains Q / T2, which is more. So the flow from hot to "
        "cold raises the total, and the reverse flow does not happen by itself.",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.BEGINNER,
        ("How do magnets work?", "why do magnets attract iron", "What is a magnet?"),
        "A magnet has a north pole and a south pole. Unlike poles attract each other, like poles push each other away. "
        "Inside iron there are many tiny regions that act like small magnets. Normally they point in all directions. "
        "Near a magnet they line up, and the iron is attracted. Copper and wood have no such regions, so they do not "
        "stick. What happens when you cut a magnet in two? You get two smaller magnets, each with both poles.",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.INTERMEDIATE,
        ("Why does a ship float?", "why do heavy ships not sink", "What is Archimedes' principle?"),
        "Archimedes' principle says: water pushes a body up with a force equal to the weight of the water it pushes "
        "aside. A lump of steel pushes aside little water, so it sinks. A ship is hollow: it pushes aside much more "
        "water for the same weight. It sinks in only until the weight of that water equals its own weight. Then both "
        "forces, in newtons, are equal, and it floats.",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.BEGINNER,
        (
            "Why do we have seasons?",
            "what causes summer and winter",
            "Is it warmer in summer because the Sun is nearer?",
        ),
        "The seasons come from the tilt of the Earth's axis, about 23 degrees, and not from the distance to the Sun. "
        "In June the northern half leans towards the Sun. The light falls more steeply and the days are longer, so it "
        "is summer there. In December it leans away, and it is winter. In the south it is the other way round. In "
        "which month is it summer in Australia?",
    ),
    Lesson(
        Subject.PHYSICS,
        Level.INTERMEDIATE,
        ("What is kinetic energy?", "how do I compute kinetic energy", "What is the formula for kinetic energy?"),
        "Kinetic energy is the energy of motion: E = 1/2 m v². Mass m is in kilograms, speed v in metres per second, "
        "the energy in joules. An example: a ball of 2 kg at 3 m/s. First v² = 9. Then E = 1/2 times 2 times 9 = 9 J. "
        "Because the speed is squared, twice the speed means four times the energy. That is why fast cars need so much "
        "more road to stop.",
    ),
)
