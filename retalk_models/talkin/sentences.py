# ruff: noqa: RUF001 - phonetic and non-Latin letters are meant
"""What the synthetic voices say: sentences written for this project, and espeak-ng's voice variants."""

from __future__ import annotations

VARIANTS = (
    "", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "klatt", "klatt2",
    "klatt4", "croak", "whisper", "Andy", "Annie", "Denis", "Gene", "Lee", "Linda", "Michael", "Steph",
    "anika", "belinda", "ed", "edward", "grandma", "iven", "linda", "max", "quincy", "rob", "robert",
)  # fmt: skip

SENTENCES: dict[str, tuple[str, ...]] = {
    "en-us": (
        "Maybe the blue bus will bring my mother back before supper.",
        "We have to move five heavy boxes from the van, please help me.",
        "Nobody remembers who painted the big map above the piano.",
        "She sells warm bread and honey at the market every Monday.",
        "Open the window, the room smells of paint and pepper.",
        "My father was a farmer, and he always got up before dawn.",
        "Could you put that package on top of the green chair, or beside it?",
        "People want to know what happened, but I am not able to answer them.",
    ),
    "en-gb-x-rp": (
        "I bought a bottle of milk and a pound of apples this morning.",
        "The museum opens at half past nine, but the shop is already open.",
        "Perhaps we ought to visit your aunt in the village by the sea.",
        "Everything about that film was wonderful, apart from the music.",
        "Move along, please, and mind the gap between the platforms.",
    ),
    "de": (
        "Mein Bruder möchte im Sommer mit dem Boot über den Bodensee fahren.",
        "Bitte bringen Sie mir einen Becher Milch und ein paar Pflaumen.",
        "Am Abend haben wir über das Problem mit der Pumpe gesprochen.",
        "Wer früh aufsteht, kann im Park noch viele Vögel hören.",
        "Die Prüfung war schwer, aber am Ende haben alle bestanden.",
        "Ob wir morgen baden gehen, hängt vom Wetter ab.",
    ),
    "fr": (
        "Ma mère prépare une bonne soupe avec beaucoup de pommes de terre.",
        "Le petit bateau bleu est parti avant la pluie.",
        "Pouvez-vous fermer la fenêtre, s'il vous plaît, il fait froid.",
        "Nous avons vu un film formidable au cinéma du village.",
        "Mon ami habite au bout de la rue, près du marché.",
        "Je voudrais bien comprendre pourquoi personne ne me parle.",
    ),
    "es": (
        "Mi abuela vive en un pueblo pequeño cerca de la montaña.",
        "Por favor, pon el vaso de vino blanco sobre la mesa.",
        "Mañana vamos a comprar pan, manzanas y un poco de queso.",
        "El profesor habló mucho tiempo sobre el problema del agua.",
        "Nadie sabe por qué el barco no pudo volver al puerto.",
        "Me gusta caminar bajo la lluvia cuando no hace frío.",
    ),
    "it": (
        "Mio padre beve sempre un bicchiere di vino prima di pranzo.",
        "Il bambino ha perso la palla blu nel parco dietro la piazza.",
        "Vorrei comprare un po' di pane e un barattolo di miele.",
        "Domani mattina partiamo presto per arrivare al mare.",
        "Non ho mai visto una montagna così bella come questa.",
    ),
    "pt": (
        "A minha mãe comprou pão, manteiga e uma garrafa de vinho.",
        "O menino subiu no muro para ver o barco passar.",
        "Você pode abrir a porta para mim, por favor.",
        "Amanhã vamos viajar para uma praia bem bonita.",
        "Ninguém sabia que o homem morava sozinho na fazenda.",
    ),
    "nl": (
        "Mijn broer bouwt een boot om mee over het meer te varen.",
        "Wil je de boter en de appelmoes op de tafel zetten.",
        "Het was koud buiten, maar binnen brandde een warm vuur.",
        "Wij hebben vanmorgen veel bloemen op de markt gekocht.",
        "Niemand wist waarom de bel zo vroeg begon te luiden.",
    ),
    "pl": (
        "Moja babcia piecze pyszny chleb i podaje go z masłem.",
        "Proszę zamknąć okno, bo na dworze pada zimny deszcz.",
        "W piątek pojedziemy pociągiem do małego miasta nad morzem.",
        "Pan Bąk mówi powoli, ale bardzo ciekawie opowiada.",
        "Nie pamiętam, kto namalował ten wielki obraz.",
    ),
    "ru": (
        "Моя бабушка живёт в маленькой деревне у реки.",
        "Пожалуйста, положи большую белую папку на полку.",
        "Мы пойдём в парк, если завтра будет хорошая погода.",
        "Папа купил хлеб, молоко и пару вкусных яблок.",
        "Никто не помнит, почему поезд вышел так поздно.",
    ),
    "tr": (
        "Babam sabah erken kalkıp bahçedeki büyük ağaçları suluyor.",
        "Lütfen pencereyi kapat, dışarıda çok soğuk bir hava var.",
        "Yarın pazardan peynir, ekmek ve biraz bal alacağız.",
        "Küçük kız mavi topu duvarın üzerinden attı.",
        "Bu kitabı bana en iyi arkadaşım vermişti.",
    ),
    "cmn-latn-pinyin": (
        "wo3 ma1 ma5 ming2 tian1 bu4 neng2 lai2 bei3 jing1.",
        "ta1 mei2 you3 mai3 mian4 bao1, ye3 mei2 mai3 ping2 guo3.",
        "peng2 you3 men5 wan3 shang4 dou1 zai4 wai4 mian4 pao3 bu4.",
        "qing3 ba3 men2 da3 kai1, wo3 yao4 ba1 ba5 bang1 mang2.",
        "wo3 men5 xi3 huan1 fei1 chang2 mei3 de5 feng1 jing3.",
    ),
    "hi": (
        "मेरे पिताजी सुबह बहुत जल्दी बाज़ार जाते हैं।",
        "कृपया खिड़की बंद कर दो, बाहर बारिश हो रही है।",
        "हम परसों एक बड़े मंदिर में पूजा करने वाले हैं।",
        "मुझे मीठे फल और पानी पीना बहुत पसंद है।",
    ),
    "fi": (
        "Pieni poika meni pimeään metsään poimimaan marjoja.",
        "Voisitko pyytää äitiä avaamaan oven minulle.",
        "Huomenna matkustamme bussilla vanhaan kaupunkiin.",
        "Minun ystäväni puhuu hyvin monta kieltä.",
    ),
    "sv": (
        "Min mamma bakar bröd och bullar varje lördag morgon.",
        "Kan du öppna fönstret, det är så varmt här inne.",
        "Pojken sprang fram till båten för att hjälpa sin pappa.",
        "Vi brukar promenera vid havet på kvällen.",
    ),
}
