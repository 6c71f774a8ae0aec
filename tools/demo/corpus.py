#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Grammar that writes the training text of the Lepton demo model.

Every text is written by the templates below and by nothing else, so the demo
model carries no third-party text.  A template uses two notations:

    [one|two|three]   choose one alternative (may be nested, may be empty)
    {slot}            value fixed for the whole text (name, pronoun, object...)

Slots are what keeps a text consistent: the choice is made once, before the
first sentence, and every later sentence refers to the same slot.

    corpus.py [COUNT [SEED]]     print COUNT texts, one per line
"""
import random
import re
import sys

GIRLS = "Anna Mia Lily Emma Rosa Sara Nina Ella".split()
BOYS = "Tom Ben Max Leo Sam Jack Finn Oscar".split()

# name, preposition for "being there", spots where a thing can lie
PLACES = [
    ("park", "in", ["under the old bench", "behind the tall tree", "in the green grass", "next to the small pond"]),
    ("garden", "in", ["under the apple tree", "behind the roses", "next to the stone wall", "between the tall flowers"]),
    ("forest", "in", ["under the old oak", "behind a big stone", "in the soft moss", "next to a fallen tree"]),
    ("beach", "on", ["in the warm sand", "behind a big rock", "next to a blue shell", "under an old boat"]),
    ("farm", "on", ["behind the barn", "in the dry hay", "next to the well", "under the red cart"]),
    ("market", "at", ["under a wooden table", "behind the bread stall", "next to the fountain", "between two baskets"]),
    ("village", "in", ["next to the stone bridge", "behind the bakery", "under a wooden bench", "in front of the mill"]),
    ("hill", "on", ["in the tall grass", "behind a grey rock", "under the lonely tree", "next to the old path"]),
    ("lake", "by", ["under the wooden bridge", "next to a small boat", "behind the tall grass", "between two stones"]),
]

# noun, adjectives, what one does with it (infinitive, past)
OBJECTS = [
    ("ball", "red blue yellow round", "play with the ball", "played with the ball"),
    ("kite", "red blue yellow big", "fly the kite", "flew the kite"),
    ("drum", "small red old round", "play the drum", "played the drum"),
    ("book", "old thick little blue", "read the book", "read the book"),
    ("boat", "wooden white small blue", "sail the boat", "sailed the boat"),
    ("bell", "golden small shiny silver", "ring the bell", "rang the bell"),
    ("hat", "green big warm funny", "wear the hat", "wore the hat"),
    ("scarf", "soft warm red long", "wear the scarf", "wore the scarf"),
    ("doll", "little soft pretty old", "play with the doll", "played with the doll"),
    ("flute", "wooden silver long little", "play the flute", "played the flute"),
    ("car", "small red fast wooden", "play with the car", "played with the car"),
    ("cup", "white little blue pretty", "drink from the cup", "drank from the cup"),
    ("lamp", "little golden old bright", "light the lamp", "lit the lamp"),
    ("basket", "big brown strong round", "carry the basket", "carried the basket"),
]

# noun, adjectives, home, food, what it likes to do
ANIMALS = [
    ("fox", "red clever young small", "a den under the hill", "berries", "run through the tall grass"),
    ("rabbit", "white soft quick grey", "a hole under the hedge", "carrots", "jump over the stones"),
    ("mouse", "tiny brown quiet grey", "a hole in the wall", "cheese", "run along the wall"),
    ("bear", "big brown friendly strong", "a cave in the hills", "honey", "swim in the cool river"),
    ("duck", "yellow white little funny", "a nest near the pond", "seeds", "swim on the pond"),
    ("hedgehog", "small shy brown round", "a pile of dry leaves", "apples", "walk in the quiet garden"),
    ("squirrel", "red quick young clever", "a hole in the old oak", "nuts", "climb the tall trees"),
    ("bird", "blue small yellow pretty", "a nest in the tree", "seeds", "sing in the morning"),
    ("cat", "black white lazy soft", "a basket by the fire", "fish", "sleep in the warm sun"),
    ("dog", "brown happy big friendly", "a little house in the yard", "meat", "run after a ball"),
    ("pony", "brown gentle white strong", "a stable on the farm", "oats", "run across the field"),
    ("goat", "white grey funny young", "a shed behind the barn", "fresh grass", "climb on the rocks"),
    ("turtle", "slow old green quiet", "a hole by the lake", "green leaves", "rest on a warm stone"),
    ("frog", "green little funny loud", "a pond in the garden", "flies", "jump into the water"),
]

# what is wrong with an animal, what it says, what the hero does, the result
TROUBLES = [
    ("was cold", "I have no warm place to sleep", "[wrapped it in a soft blanket|gave it a warm blanket]", "soon the {a} was warm again"),
    ("was hungry", "I have not eaten all day", "[gave it some {food}|found some {food} for it]", "the {a} ate [everything|it all] and was full"),
    ("was lost", "I cannot find my way home", "[walked with it|took it back] to its home, {home}", "the {a} was home at last"),
    ("was stuck under a branch", "I cannot move", "[lifted|pulled away] the heavy branch", "the {a} was free again"),
    ("had hurt its foot", "my foot hurts", "put a [soft|small] bandage on its foot", "soon the {a} could walk again"),
    ("was thirsty", "the stream is dry and I need water", "brought it a bowl of [fresh|cool] water", "the {a} drank [all of it|until the bowl was empty]"),
    ("was lonely", "I have no friends here", "sat down and [played with it|told it a story]", "the {a} was not lonely any more"),
    ("was afraid", "the thunder is too loud", "held it [close|gently] until the storm was over", "the {a} was not afraid any more"),
]

# weather, what happens, what one puts on or takes, what one does outside
WEATHERS = [
    ("sunny", "the sun was [warm|bright] and the sky was blue", "a straw hat", "[played in the grass|swam in the lake|picked flowers|ate lunch under a tree]", "The sun made everyone feel [happy|warm]."),
    ("rainy", "the rain fell on the roof", "a yellow coat", "[jumped in the puddles|watched the small rivers in the street|counted the drops on the window]", "After the rain, there was a [rainbow|bright rainbow] in the sky."),
    ("snowy", "the snow covered the houses", "warm gloves", "[made a big snowman|slid down the hill|threw snowballs]", "Then a cup of hot milk was [waiting in the kitchen|ready on the table]."),
    ("windy", "the wind shook the trees", "a long scarf", "[flew a kite|ran after the leaves|watched the clouds race by]", "The wind sang [all day|a song in the chimney]."),
    ("foggy", "the fog hid the hills", "a small lamp", "[walked slowly along the path|listened to the quiet street|looked for the old bridge]", "At noon, the fog went away and the sun came out."),
    ("cold", "there was ice on the pond", "a thick coat", "[walked on the hard snow|looked at the ice on the trees|fed the hungry birds]", "In the evening, the fire was warm and bright."),
]

# a skill, why it is hard, what helps, what the hero can do in the end
SKILLS = [
    ("swim", "The water was deep and cold", "Kick your legs and breathe slowly", "swam across the [pond|pool]"),
    ("ride a bike", "The bike was fast and hard to hold", "Look ahead and keep your feet moving", "rode the bike down the [street|road]"),
    ("read", "There were so many letters", "Say one letter at a time", "read a whole page [aloud|alone]"),
    ("sing", "The high notes were hard", "Take a deep breath first", "sang a [long|happy] song for everyone"),
    ("paint", "The colours ran into each other", "Use less water on your brush", "painted a [red house|big tree] under a blue sky"),
    ("bake bread", "The bread was flat and hard", "Give the bread time to rise", "baked a [soft|warm] loaf of bread"),
    ("tie a knot", "The rope was always loose", "Make a loop and pull it tight", "tied a strong knot"),
    ("climb", "The wall was very high", "Take one small step at a time", "climbed to the top of the [wall|rock]"),
]

# something to make together, with what, a mishap and its repair
PROJECTS = [
    ("a tree house", "wood and nails", "one wall fell down", "used a longer nail", "sat in the tree house and looked at the [sky|clouds]"),
    ("a sand castle", "sand and shells", "a wave washed the tower away", "built it again, far from the water", "put a little flag on the castle"),
    ("a small boat", "wood and rope", "the boat had a hole", "closed the hole with a piece of wood", "sailed across the pond"),
    ("a big cake", "flour, eggs and sugar", "the first cake was too dry", "added more milk", "shared the sweet cake with [everyone|the whole family]"),
    ("a bird house", "wood and paint", "the roof was too small", "cut a bigger roof", "watched a bird move in"),
    ("a snowman", "snow and two stones", "the head fell off", "made a smaller head", "gave the snowman an old hat"),
    ("a pot of soup", "water, carrots and beans", "the soup had no taste", "added some salt", "ate the hot soup [together|by the fire]"),
    ("a kite", "paper and string", "the paper tore in the wind", "used stronger paper", "watched the kite dance in the sky"),
]

# what stops a robot, what the hero does
ROBOT_TROUBLES = [
    ("Its battery was empty", "[charged the battery|gave it a new battery]"),
    ("A stone was stuck in its wheel", "pulled the stone out of the wheel"),
    ("One of its arms was loose", "[fixed the arm with a small screw|made the arm tight again]"),
    ("There was dust on its eyes", "[cleaned its eyes with a soft cloth|wiped the dust away]"),
    ("Its wheels were dry and loud", "put some oil on the wheels"),
    ("A wire was broken", "[joined the wire again|put in a new wire]"),
]
ROBOT_JOBS = [
    ("water the flowers", "watered the flowers", "garden"),
    ("carry the boxes", "carried the boxes", "workshop"),
    ("clean the floor", "cleaned the floor", "school"),
    ("sort the books", "sorted the books", "library"),
    ("bring the letters", "brought the letters", "village"),
    ("pick the apples", "picked the apples", "farm"),
    ("bake the bread", "baked the bread", "bakery"),
]

# what fails in a cluster, the sign of it, the repair
FAULTS = [
    ("a cable was loose", "the messages stopped", "pushed the cable back in"),
    ("the memory was full", "the answers became slow", "[added more memory|moved some work to another computer]"),
    ("a fan was broken", "one computer became too hot", "put in a new fan"),
    ("the power was out", "one computer was dark", "turned the power on again"),
    ("a disk was old", "one file could not be read", "copied the file to a new disk"),
    ("a program had a bug", "one number was wrong", "found the bug and fixed it"),
]

# person of the fables, place, fault of character, event, lesson
FABLES = [
    ("king", "a castle on the hill", "wanted more and more gold", "One day, his bag was so heavy that he fell into the river. A poor boy pulled him out and asked for nothing", "a good heart is worth more than gold"),
    ("queen", "a white tower by the sea", "never listened to anyone", "One night, a storm came. An old fisherman had told her to close the gates, but she had not listened. The water ran into her halls", "it is wise to listen"),
    ("farmer", "a small house near the fields", "worked from morning to night", "One summer, no rain came. His neighbours remembered how often he had helped them, and they brought him water", "kindness comes back"),
    ("baker", "a warm house in the village", "gave bread to every hungry child", "One winter, the baker was ill. The children came to light his oven and to bake his bread", "what you give comes back to you"),
    ("sailor", "a little house by the harbour", "was always in a hurry", "One morning, he left without his map and was lost for seven days. A slow old ship found him and brought him home", "it is good to prepare well"),
    ("giant", "a cave in the mountains", "was sad because everyone was afraid of him", "One day, the bridge broke. The giant lay down over the river, and the people walked across his back", "you should not judge by size"),
    ("clockmaker", "a narrow house in the town", "hid every mistake", "One day, the big clock stopped. A young girl found the small wheel that he had put in wrong, and she did not laugh", "it is brave to admit a mistake"),
    ("shepherd", "a green valley", "was too proud to ask for help", "One evening, a sheep was lost in the fog. At last he asked his neighbours, and together they found it", "it is good to ask for help"),
]

# season, its signs, what people do, what animals do
SEASONS = [
    ("spring", "The snow melts and the first flowers open", "plant seeds in the garden", "The birds build their nests", "The air smells of fresh earth"),
    ("summer", "The days are long and warm", "swim in the lake and eat ice cream", "The bees fly from flower to flower", "The nights are short and full of stars"),
    ("autumn", "The leaves turn red and yellow", "pick apples and make jam", "The squirrels hide their nuts", "The wind is cool and the evenings are dark"),
    ("winter", "The snow falls and the lakes freeze", "sit by the fire and drink hot tea", "The bears sleep in their caves", "The nights are long and quiet"),
]

# profession, place of work, tool, what they do, why people like it
JOBS = [
    ("baker", "the bakery", "a hot oven", "bakes fresh bread", "The whole street smells of bread"),
    ("teacher", "the school", "a box of chalk", "teaches the children to read and write", "The children ask many questions"),
    ("doctor", "the hospital", "a white coat", "helps people who are ill", "Many people say thank you"),
    ("gardener", "the park", "a long rake", "takes care of the trees and flowers", "The park is green and bright"),
    ("fisherman", "the sea", "a wide net", "catches fish", "The cats wait for the boat to come home"),
    ("builder", "the new house", "a heavy hammer", "builds strong walls", "The house grows higher every day"),
    ("librarian", "the library", "a long ladder", "finds the right book for everyone", "It is always quiet there"),
    ("engineer", "the workshop", "a good computer", "writes programs and fixes machines", "The machines run day and night"),
]

GOOD_ENDS = [
    "It was a [good|wonderful|happy|lovely] day.",
    "{n} went home with a [big |]smile.",
    "That night, {n} slept very well.",
    "{n} was very happy.",
    "{n} told {p} [mother|father|grandmother] all about it.",
    "{n} never forgot that day.",
]


class Grammar:
    """A random source plus the expansion of templates."""

    ALTERNATIVE = re.compile(r"\[([^\[\]]*)\]")

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def pick(self, items):
        return self.rng.choice(items.split() if isinstance(items, str) else items)

    def expand(self, template, slots):
        """Resolve the innermost alternatives first, then fill the slots.

        A slot value may itself hold alternatives or slots, hence the loop.
        """
        text = template
        while "[" in text or "{" in text:
            text, changed = self.ALTERNATIVE.subn(
                lambda m: self.rng.choice(m.group(1).split("|")), text)
            if not changed:
                text = text.format_map(slots)
        return tidy(text)


def tidy(text):
    """Spacing, the article 'an', and capitals at sentence starts."""
    text = re.sub(r" +", " ", text).strip()
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return re.sub(r'(^"?|[.!?] "?)([a-z])',
                  lambda m: m.group(1) + m.group(2).upper(), text)


def person(g, other=None):
    """A child with pronouns; never the same name as `other`."""
    girl = g.rng.random() < 0.5
    name = g.pick([n for n in (GIRLS if girl else BOYS) if n != other])
    words = ("girl", "she", "her", "her") if girl else ("boy", "he", "him", "his")
    return (name,) + words


def hero_slots(g):
    """{n} name, {kind}, {s} he/she, {o} him/her, {p} his/her; f-slots: friend."""
    n, kind, s, o, p = person(g)
    fn, fkind, fs, fo, fp = person(g, n)
    return dict(n=n, kind=kind, s=s, o=o, p=p, fn=fn, fkind=fkind, fs=fs, fo=fo, fp=fp)


def place_slots(g):
    name, prep, spots = g.pick(PLACES)
    return dict(place="the " + name, at=prep + " the " + name, spot=g.pick(spots))


def object_slots(g):
    noun, adjectives, do, did = g.pick(OBJECTS)
    # two children cannot wear one hat at the same moment
    how = "in turn" if noun in ("hat", "scarf", "cup", "flute") else "together"
    return dict(thing=noun, tadj=g.pick(adjectives), do=do, did=did, how=how,
                doit=do.replace("the " + noun, "it"))


def animal_slots(g, only=None):
    noun, adjectives, home, food, likes = g.pick(
        [a for a in ANIMALS if only is None or a[0] in only])
    first, second = g.rng.sample(adjectives.split(), 2)
    return dict(a=noun, aadj=first, aadj2=second, home=home, food=food, likes=likes)


def story(g, slots, *sentences):
    return g.expand(" ".join(sentences), slots)


# Openings introduce the hero; they fit before any story about one child.
INTRO = ("[Once upon a time, there was a [kind|little|young|clever|brave|happy] {kind} named {n}."
         "|Once upon a time, a [little|young|curious] {kind} named {n} lived [near the river|in a small village|in a white house|by the sea|at the edge of the forest]."
         "|There was once a [kind|little|curious|brave] {kind} named {n}."
         "|The [little|young] {kind} was called {n}."
         "|{n} was a [kind|little|clever|curious|cheerful|brave] {kind}."
         "|In a [small|quiet|green] village lived a [little|clever|happy] {kind} named {n}."
         "|A long time ago, there was a [little|kind|brave] {kind} named {n}.]")
WHEN = "[One day|One morning|One sunny day|In the morning|One afternoon|After lunch|Early in the morning]"


def ask(g, topic):
    """Some stories answer a request, so that the demo can be asked for one."""
    return "Tell me a story about " + topic + "." if g.rng.random() < 0.1 else ""


def end(g):
    return g.pick(GOOD_ENDS)


def found_story(g):
    """The hero finds a thing and gives it back."""
    slots = {**hero_slots(g), **place_slots(g), **object_slots(g)}
    return story(
        g, slots, ask(g, "a {thing}"), INTRO if g.rng.random() < .8 else "",
        WHEN + ", {n} [went|walked|ran] to {place}.",
        "[There, |]{s} [saw|found] a {tadj} {thing} {spot}.",
        "[{n} wanted to {doit}, but {s} did not know whose it was.|\"Whose {thing} is this?\" asked {n}.|\"What a [nice|beautiful] {thing}!\" said {n}.]",
        "Then {s} [saw|met|heard] {fn}. {fn} was [crying|very sad|looking for something].",
        "\"I [have lost|lost|cannot find] my {thing},\" said {fn}.",
        "{n} gave the {tadj} {thing} back [at once|with a smile|to {fn}].",
        "[\"Thank you, {n}!\" said {fn}.|{fn} was so happy and said thank you.|\"You are a good friend,\" said {fn}.]",
        "[Then they {did} {how}.|After that, {n} and {fn} {did} {how} until the evening.|From that day on, {n} and {fn} were [good|best] friends.|]",
        end(g))


def lost_story(g):
    """The hero loses a thing; a friend or an animal finds it."""
    slots = {**hero_slots(g), **place_slots(g), **object_slots(g), **animal_slots(g)}
    finder = g.pick([
        "{fn} came to help. They looked [everywhere|for a long time]. At last, {fn} found the {thing} {spot}.",
        "Then a {aadj} {a} came by. \"Your {thing} is {spot},\" said the {a}. And there it was!",
        "{s} stopped and thought about it. \"Where did I [see it last|have it last]?\" {n} went back to {place} and found the {thing} {spot}.",
    ])
    thanks = ("Thank you, {fn}" if "{fn}" in finder else
              "Thank you, little {a}" if "{a}" in finder else "I will be more careful")
    return story(
        g, slots, INTRO,
        "{s} had a {tadj} {thing} and loved to {doit}.",
        WHEN + ", {n} {did} {at}.",
        "[But when {s} came home, the {thing} was gone.|Then it was time to eat, and {s} forgot the {thing}.|But then {s} fell asleep, and when {s} woke up, the {thing} was gone.]",
        "[{n} was very sad.|{n} began to cry.|\"Oh no! Where is my {thing}?\" cried {n}.]",
        finder, "\"" + thanks + "!\" said {n}.",
        "[{n} held the {tadj} {thing} tight.|{n} took the {thing} home.|]", end(g))


def rescue_story(g):
    """The hero helps an animal; the cause of its trouble decides the help."""
    slots = {**hero_slots(g), **place_slots(g), **animal_slots(g)}
    trouble, speech, helped, result = g.pick(TROUBLES)
    return story(
        g, slots, INTRO if g.rng.random() < .7 else "",
        WHEN + ", {n} [was {at}|was walking {at}|was playing {at}]. [Suddenly, {s}|{s}] [heard a small voice|heard a sound|saw something move]. "
        "It was a [{aadj} {a}|{aadj2} {a}|little {a}]. The {a} " + trouble + ".",
        "\"[What is wrong|Can I help you|Why are you so sad]?\" asked {n}.",
        "\"" + speech + ",\" said the {a}.",
        "[So|At once,] {n} " + helped + ", and " + result + ".",
        "[\"Thank you, {n},\" said the {a}.|\"You are very kind,\" said the {a}.|The {a} was very [happy|thankful].]",
        "[From that day on, {n} and the {a} were friends.|After that, the {a} came to see {n} every day.|]",
        end(g))


def animal_story(g):
    """Two animals: one has plenty of food, the other has none."""
    slots = animal_slots(g)
    other = animal_slots(g)
    while other["a"] == slots["a"]:
        other = animal_slots(g)
    slots.update(b=other["a"], badj=other["aadj"], bfood=other["food"], bhome=other["home"])
    return story(
        g, slots, ask(g, "a {a}"),
        "[Once upon a time, there was a {aadj} {a}.|Once upon a time, a {aadj} {a} lived in {home}.|The little {a} lived in {home}.|There was once a little {a}.]",
        "The {a} liked to {likes}[.| and to eat {food}.]",
        "[One day|One cold morning|In the evening|One rainy day], the {a} met a {badj} {b}.",
        "[The {b} looked very sad.|The {b} was sitting alone.|The {b} was crying.]",
        "\"[What is the matter|Why are you sad], {b}?\" asked the {a}.",
        g.pick([
            "\"I [have no|cannot find any] {bfood},\" said the {b}. The {a} [helped the {b} to look|looked everywhere]. Soon they found [a lot of|some] {bfood}. The {b} ate and was happy again.",
            "\"The wind has broken my home,\" said the {b}. The {a} [brought some wood and leaves|called all the other animals], and they [built|made] the home again: {bhome}.",
            "\"[Nobody wants to play with me|I am all alone],\" said the {b}. \"Then play with me,\" said the {a}. They played [until the sun went down|all day long].",
            "\"I am afraid of the dark,\" said the {b}. \"Look at the moon,\" said the {a}. \"It is a lamp for all of us.\" Then the {b} was not afraid any more.",
        ]),
        "[From that day on, the {a} and the {b} were [good|best] friends.|The {a} and the {b} [became friends|shared everything after that].|\"You are a good friend,\" said the {b}. The {a} smiled.]")


def weather_story(g):
    """The weather decides the clothes and the games."""
    kind, sky, wear, did, close = g.pick(WEATHERS)
    slots = hero_slots(g)
    return story(
        g, slots,
        "[In the morning, {n} looked out of the window.|In the morning, {n} woke up early.|It was a " + kind + " morning. {n} woke up early.|In the morning, it was " + kind + ". {n} looked out of the window.]",
        "It was a " + kind + " day, and " + sky + ".",
        "\"[Take|Do not forget] " + wear + ",\" said {p} [mother|father|grandmother].",
        "{n} took " + wear + " and went outside. [There, {s} met {fn}.|{fn} was already there.]",
        "Together they " + did + ".",
        "[They laughed a lot.|They had a lot of fun.|Time went by very fast.]", close,
        "[In the evening, {n} was tired but happy.|It was a good day.|\"What a lovely day!\" said {n}.]")


def skill_story(g):
    """Trying, failing, advice, success."""
    skill, hard, advice, did = g.pick(SKILLS)
    return story(
        g, hero_slots(g), ask(g, "a {kind}"), INTRO,
        "{n} wanted to learn to " + skill + ".",
        "[But it was not easy.|But the first try went wrong.] " + hard + ".",
        "[{n} was sad.|\"I will never learn it,\" said {n}.|{n} wanted to give up.]",
        "Then [{fn}|{p} grandmother|{p} father|{p} mother] said, \"" + advice + ".\"",
        "{n} tried again [and again|the next day|every day].",
        "[At last|After a week|In the end], {n} " + did + ".",
        "[\"I can do it!\" cried {n}.|Everyone clapped.|{n} was very proud.]",
        "[It was a [good|wonderful] day.|{n} told {p} [mother|father|grandmother] all about it.|Since then, {n} never gives up.]")


def pair_story(g):
    """Two children make something together and repair a mishap."""
    what, parts, mishap, repair, final = g.pick(PROJECTS)
    return story(
        g, hero_slots(g),
        "[{n} and {fn} were [good|best] friends.|{n} and {fn} [had a day off|wanted to build something]. |{n} and {fn} lived in the same street.|One day, {n} and {fn} met after school.]",
        "[\"Let us make " + what + ",\" said {n}.|They wanted to make " + what + ".|\"Can we make " + what + "?\" asked {fn}.]",
        "They [took|found|brought] " + parts + " and began to work.",
        "[But then|At first, all went well, but then|They worked for a long time, but] " + mishap + ".",
        "[\"Do not worry,\" said {fn}.|\"We can fix it,\" said {n}.|{n} was sad, but {fn} had an idea.]",
        "So they " + repair + ".",
        "[Soon|In the evening|At last], " + what.replace("a ", "the ", 1) + " was ready.",
        "{n} and {fn} " + final + ".",
        "[They were very proud.|It was a good day.|They were happy because they had done it together.]")


def sharing_story(g):
    """A quarrel about one thing, and peace."""
    return story(
        g, {**hero_slots(g), **place_slots(g), **object_slots(g)},
        "{n} and {fn} [went to {place}|were playing {at}|met {at}].",
        "{n} had a {tadj} {thing}. {fn} wanted to {doit}, too.",
        "[\"No, it is mine!\" said {n}.|\"You cannot have it,\" said {n}.]",
        "[{fn} was sad and walked away.|{fn} sat down and said nothing.|{fn} began to cry.]",
        "[Now {n} was alone, and it was no fun.|{n} looked at the {thing}. It was no fun alone.|Soon {n} felt sorry.]",
        "[\"I am sorry,\" said {n}. \"Let us share the {thing}.\"|{n} went to {fn} and said, \"Please come and play with me.\"]",
        "[{fn} smiled.|{fn} was happy again.|\"Thank you,\" said {fn}.]",
        "[First {fn} {did}, and then it was the turn of {n}.|They {did} {how} until the evening.]",
        "[It is more fun to share.|They were friends again.|Since then, they always share.]")


def robot_story(g):
    """A helpful robot stops; someone repairs it."""
    job, did, where = g.pick(ROBOT_JOBS)
    trouble, repair = g.pick(ROBOT_TROUBLES)
    return story(
        g, hero_slots(g), ask(g, "a robot"),
        "[The little robot lived in a " + where + ".|Once upon a time, there was a little robot in a " + where + ".|There was once a [small|little|friendly] robot. It lived in a " + where + ".|{n} had a little robot. It lived in a " + where + ".]",
        "Every day, it [liked|had] to " + job + ".",
        "[It had [two big eyes|round blue eyes|a red light on its head|four small wheels].|]",
        WHEN + ", the robot [stopped|could not move|stood still]. " + trouble + ".",
        "[\"Beep,\" said the robot sadly.|\"Please help me,\" said the robot.|The robot was sad.]",
        "[{n} saw it and came to help.|{n} heard the robot and ran to it.|\"Do not be afraid,\" said {n}.]",
        "{s} " + repair + ".",
        "[Soon|A minute later|Then] the robot [moved|rolled|was well] again.",
        "[\"Thank you, {n},\" said the robot.|\"Beep, beep!\" said the robot happily.|The robot danced with joy.]",
        "The little robot " + did + " again, and [everyone was happy.|{n} helped it.|all was well.]")


def cluster_story(g):
    """A cluster works together; one part fails and is repaired."""
    fault, sign, repair = g.pick(FAULTS)
    slots = dict(hero_slots(g), count=g.pick("two three four five six eight"))
    return story(
        g, slots, ask(g, "a cluster"),
        "[The cluster has {count} [small|quiet|fast] computers.|The cluster stands in a [small|cool|quiet] room. It has {count} computers.|There was once a cluster of {count} small computers.|{n} built a cluster of {count} computers.]",
        "[They work together as a team.|Each computer does a part of the work.|No computer has to do all the work alone.]",
        "[One night|One day|In the morning], " + sign + ". [\"What is wrong?\" asked {n}.|{n} came to look.|{n} looked at the lights.]",
        "{n} [saw|found out] that " + fault + ".",
        "{s} " + repair + ".",
        "[Then the cluster was fast again.|Soon all the lights were green.|Then every computer went back to work.]",
        "[No message was lost.|The work was done in time.|The cluster did not lose a single word.]",
        "[\"Well done,\" said {fn}.|{n} was very proud.|{n} and {fn} were happy.|]")


def cluster_text(g):
    """How a model is served by several computers, in simple words."""
    slots = dict(count=g.pick("two three four"), text=g.pick("story poem letter answer"))
    return story(
        g, slots,
        "[The cluster has {count} computers.|The model is too big for one computer, so {count} computers share it.|Lepton is a small program. It shares a model between {count} computers.|A big model can live on {count} small computers.]",
        "[The model is cut into {count} parts.|Each computer holds one part of the model.|Every computer keeps its own part.]",
        "The first computer reads the words [and turns them into numbers|of the user]. It does its part of the work and sends the [numbers|result] to the next computer.",
        "The last computer [chooses|picks] the next word. Then the work begins again with the first computer.",
        "[Word by word, the {text} grows.|So the {text} grows, one word at a time.|In this way, they write a {text} together.]",
        "[When one computer is busy, the messages wait in a queue.|The messages between them are small and fast.|If a computer fails, another one can take its place.|When many users ask, each one gets a turn.]",
        "[Together they are strong.|A good team can do great things.|The user sees only the {text}.]")


def fable(g):
    who, home, trait, event, lesson = g.pick(FABLES)
    she = who == "queen"
    s, p, o = ("she", "her", "her") if she else ("he", "his", "him")
    adj = g.pick("old rich young lonely" if who in ("king", "queen", "sailor") else "old quiet young lonely")
    return story(
        g, dict(s=s, p=p, o=o, who=who), ask(g, "a {who}"),
        "[A long time ago, there was a " + adj + " {who}.|A long time ago, a " + adj + " {who} lived in " + home + ".|Long ago, a " + adj + " {who} lived in " + home + ".|Once upon a time, there was a " + adj + " {who} who lived in " + home + ".]",
        "The {who} " + trait + ".",
        event + ".",
        "[After that day, the {who} was never the same.|The {who} thought about it for a long time.|The {who} was very thankful.]",
        "[\"Now I know that " + lesson + ",\" said the {who}.|So the {who} learned that " + lesson + ".|Since then, people say that " + lesson + ".]",
        "[And the {who} lived happily for many years.|The story is still told today.|]")


def animal_text(g):
    return story(
        g, animal_slots(g),
        "[The {a} is {aadj} and {aadj2}.|This is a {aadj} {a}.|Look at the {aadj} {a}.|A {a} is a [lovely|wonderful] animal.]",
        "[It lives in {home}.|Its home is {home}.]",
        "[It likes to eat {food}.|Its favourite food is {food}.|It eats {food} every day.]",
        "[In the morning|When the sun shines|Every day], it likes to {likes}.",
        "[At night, it sleeps in its home.|When it rains, it stays at home.|When it is tired, it goes home to sleep.]",
        "[The children love the {a}.|Everyone likes the {a}.|The {a} is happy.]")


def season_text(g):
    name, signs, people, animals, air = g.pick(SEASONS)
    parts = [signs + ".", "People [like to |]" + people + ".", animals + ".", air + "."]
    g.rng.shuffle(parts)
    return story(
        g, hero_slots(g),
        "[In the " + name + ", the world looks new.|It is " + name + ".|Now it is " + name + ".|{n} loves the " + name + ".]",
        *parts,
        "[\"I love the " + name + ",\" says {n}.|The " + name + " is a [good|wonderful] time.|Everyone is glad that it is " + name + ".]")


def job_text(g):
    who, where, tool, does, why = g.pick(JOBS)
    return story(
        g, hero_slots(g),
        "[The " + who + " gets up early.|In the morning, the " + who + " goes to " + where + ".|The " + who + " works at " + where + ".]",
        "[The " + who + "|Every day, the " + who + "] " + does + ".",
        "For this work, the " + who + " needs " + tool + ".",
        why + ".",
        "[\"I want to be a " + who + " one day,\" says {n}.|{n} likes to watch the " + who + ".|{n} sometimes helps the " + who + ".]",
        "[It is hard work, but it is good work.|In the evening, the " + who + " is tired and happy.|When the work is done, the " + who + " goes home.]")


def morning_text(g):
    return story(
        g, {**hero_slots(g), **place_slots(g), **animal_slots(g, "cat dog pony goat duck rabbit".split())},
        "In the morning, [the sun came up over the hills.|{n} woke up and opened the window.|{n} got out of bed.|the birds began to sing.]",
        "{n} [washed {p} face|put on {p} shoes|brushed {p} hair] and went to the kitchen.",
        "{p} [mother|father|grandmother] [made|was making] [warm bread|hot tea|some soup|pancakes].",
        "[\"Good morning, {n},\" {s} heard.|It smelled very good.|{n} was still a little tired.]",
        "After breakfast, {n} [fed the {a}|gave the {a} some {food}|played with the {a}].",
        "Then {s} [went|walked] to {place} with {fn}.",
        "[They sat {spot} and talked.|They rested {spot}.|They played a game {spot}.]",
        "[It was the beginning of a good day.|The day was long and full of fun.|\"I like mornings,\" said {n}.]")


def night_text(g):
    return story(
        g, {**hero_slots(g), **animal_slots(g)},
        "[In the evening|At night|When the sun went down], {n} [looked at the sky|sat by the window|could not sleep].",
        "The moon was [round and bright|big and white|like a lamp], and [a star fell from the sky|the stars were shining|it was very quiet].",
        "[{n} made a wish.|{n} thought about the day.|{n} listened to the night.]",
        "[Outside, a {aadj} {a} looked up at the moon, too.|A {aadj} {a} was still awake.|\"Good night, {a},\" said {n} to the little animal outside.]",
        "[{p} mother|{p} father|{p} grandmother] came and [told {o} a story|sang a song|read from an old book].",
        "[Soon {n} closed {p} eyes.|{n} was warm and tired.|Then the house was quiet.]",
        "[{s} dreamed of [the stars|a boat on the sea|a {aadj} {a}|a trip to the moon].]",
        "[\"Good night, {n},\" said the moon.|And the moon watched over the house.|It was a good night.]")


def hello_text(g):
    """A child introduces itself; the only texts in the first person."""
    return story(
        g, {**hero_slots(g), **place_slots(g), **object_slots(g),
            **animal_slots(g, "cat dog pony goat duck rabbit".split())},
        "[Hello!|Hello, friend!|Good morning!|Hi!] [My name is {n}.|I am {n}.]",
        "I am a [little|happy|curious] {kind} and I live [near the river|in a small village|in a white house|by the sea].",
        "I have a {aadj} {a}. It likes to {likes}.",
        "[Every day|After school|In the morning], I [go|walk] to {place} with my friend {fn}.",
        "[There we play until the evening.|There we sit and talk.|I take my {tadj} {thing} with me.|{fn} has a {tadj} {thing}, and we like to {do}.]",
        "[In the evening, my [mother|father|grandmother] tells me a story.|At night, I look at the stars.|When it rains, we stay at home and read.]",
        "[Do you want to be my friend?|I am happy here.|It is nice to meet you.|Goodbye!]")


def seed_story(g):
    return story(
        g, dict(hero_slots(g), plant=g.pick(["an apple tree", "a sunflower", "a rose", "a pumpkin", "a bean plant"])),
        INTRO if g.rng.random() < .6 else "",
        WHEN + ", {n} [found a small seed|got a small seed from {p} grandmother|bought a seed at the market].",
        "{s} put it into the [dark|soft|brown] earth and gave it [some|a little] water.",
        "[For many days, nothing happened.|The next day, there was nothing to see.|{n} waited and waited.]",
        "[\"You must be patient,\" said {fn}.|\"Give it time,\" said {p} grandfather.|\"Is it asleep?\" asked {n}.]",
        "Then a tiny green leaf came out of the ground. [It grew a little every day.|Rain and sun helped it to grow.]",
        "In the summer, it was {plant}.",
        "[{n} was very proud of it.|\"Look how big it is!\" cried {n}.|Everyone came to see it.]", end(g))


# Weights: the themes of the usual demo prompts come up often.
THEMES = [
    (found_story, 12), (lost_story, 12), (rescue_story, 14), (animal_story, 12),
    (weather_story, 7), (skill_story, 8), (pair_story, 9), (sharing_story, 7),
    (robot_story, 9), (cluster_story, 7), (cluster_text, 6), (fable, 8),
    (animal_text, 6), (season_text, 3), (job_text, 4), (morning_text, 6),
    (night_text, 6), (seed_story, 5), (hello_text, 4),
]


def texts(count, seed):
    """Yield `count` texts; the same seed always gives the same texts."""
    g = Grammar(seed)
    themes, weights = zip(*THEMES)
    for _ in range(count):
        yield g.rng.choices(themes, weights)[0](g)


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    for text in texts(count, seed):
        print(text)


if __name__ == "__main__":
    main()
