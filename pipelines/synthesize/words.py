"""What is said: the lines of the rendered films, and sentences and words for pre-training that share none of them."""

from __future__ import annotations

import itertools

LANGUAGES = ("EN", "DE", "ES", "PL", "KO")

# Line k says the same in every language; _MOOD[k] is the emotion it hints at, "" where anyone may say it.
_MOOD = [""] * 7 + ["happiness"] * 3 + ["sadness"] * 3 + ["anger"] * 3 + ["surprise"] * 3
_LINES = {
    "EN": """The train leaves in the evening / We will meet at the station / I left the keys on the table
        She is waiting in the kitchen / They came back from the city / Tell me about your work
        It is getting dark outside
        I am so glad you came / What a wonderful day / We did it together
        I miss her every day / There is nothing left for me / He will never come back
        Get out of my house / I told you not to touch it / Do not lie to me
        I cannot believe my eyes / Where did you come from / Is that really you""",
    "DE": """Der Zug fährt am Abend ab / Wir treffen uns am Bahnhof / Ich habe die Schlüssel auf dem Tisch gelassen
        Sie wartet in der Küche / Sie kamen aus der Stadt zurück / Erzähl mir von deiner Arbeit / Draußen wird es dunkel
        Ich bin so froh dass du da bist / Was für ein wunderbarer Tag / Wir haben es zusammen geschafft
        Ich vermisse sie jeden Tag / Mir ist nichts geblieben / Er kommt nie mehr zurück
        Raus aus meinem Haus / Ich sagte du sollst es nicht anfassen / Lüg mich nicht an
        Ich traue meinen Augen nicht / Wo kommst du denn her / Bist du das wirklich""",
    "ES": """El tren sale por la tarde / Nos vemos en la estación / Dejé las llaves en la mesa
        Ella espera en la cocina / Volvieron de la ciudad / Háblame de tu trabajo / Afuera está oscureciendo
        Qué alegría que hayas venido / Qué día tan maravilloso / Lo hicimos juntos
        La echo de menos cada día / Ya no me queda nada / Él no volverá nunca
        Fuera de mi casa / Te dije que no lo tocaras / No me mientas
        No puedo creer lo que veo / De dónde has salido / De verdad eres tú""",
    "PL": """Pociąg odjeżdża wieczorem / Spotkamy się na dworcu / Zostawiłem klucze na stole
        Ona czeka w kuchni / Wrócili z miasta / Opowiedz mi o swojej pracy / Na dworze robi się ciemno
        Tak się cieszę że przyszedłeś / Co za cudowny dzień / Udało nam się razem
        Tęsknię za nią każdego dnia / Nic mi już nie zostało / On już nigdy nie wróci
        Wynoś się z mojego domu / Mówiłem żebyś tego nie ruszał / Nie kłam mi
        Nie wierzę własnym oczom / Skąd się tu wziąłeś / Czy to naprawdę ty""",
    "KO": """기차는 저녁에 떠납니다 / 우리는 역에서 만날 거예요 / 열쇠를 탁자 위에 두었어요
        그녀는 부엌에서 기다려요 / 그들은 도시에서 돌아왔어요 / 당신의 일을 말해 주세요 / 밖이 어두워지고 있어요
        와 줘서 정말 기뻐요 / 정말 멋진 날이네요 / 우리가 함께 해냈어요
        매일 그녀가 그리워요 / 나에게 남은 것이 없어요 / 그는 돌아오지 않을 거예요
        내 집에서 나가 / 만지지 말라고 했잖아 / 나한테 거짓말하지 마
        내 눈을 믿을 수 없어 / 어디에서 온 거야 / 정말 너 맞아""",
}
LINES: list[tuple[str, dict[str, str]]] = [
    (mood, dict(zip(LANGUAGES, line, strict=True)))
    for mood, line in zip(
        _MOOD,
        zip(*([s.strip() for s in _LINES[k].replace("\n", "/").split("/")] for k in LANGUAGES), strict=True),
        strict=True,
    )
]

# No digit, no word of the GRID grammar, and no single letter: pre-training must not meet what is evaluated.
_GRAMMAR = {
    "EN": "the old teacher/my brother/her neighbour/the captain/our doctor/the little girl|"
    "paints/carries/watches/follows/finds/remembers|"
    "the yellow boat/some warm bread/the small garden/every window/the heavy basket/the quiet river",
    "DE": "der alte Lehrer/mein Bruder/ihre Nachbarin/der Kapitän/unsere Ärztin/das kleine Mädchen|"
    "malt/trägt/sieht/findet/sucht/kennt|"
    "das gelbe Boot/warmes Brot/den kleinen Garten/jedes Fenster/den schweren Korb/den stillen Fluss",
    "ES": "el viejo maestro/mi hermano/su vecina/el capitán/nuestra doctora/la niña|"
    "pinta/lleva/mira/encuentra/busca/recuerda|"
    "el barco amarillo/pan caliente/el jardín pequeño/cada ventana/la cesta pesada/el río tranquilo",
    "PL": "stary nauczyciel/mój brat/jej sąsiadka/kapitan/nasza lekarka/mała dziewczynka|"
    "maluje/niesie/widzi/znajduje/ogląda/pamięta|"
    "żółtą łódź/ciepły chleb/mały ogród/każde okno/ciężki kosz/cichą rzekę",
    "KO": "늙은 선생님이/내 동생이/이웃 사람이/선장이/우리 의사가/어린 소녀가|"
    "노란 배를/따뜻한 빵을/작은 정원을/모든 창문을/무거운 바구니를/조용한 강을|"
    "그린다/나른다/바라본다/찾는다/따라간다/기억한다",
}
SENTENCES: dict[str, list[str]] = {
    language: [" ".join(parts) for parts in itertools.product(*(p.split("/") for p in grammar.split("|")))]
    for language, grammar in _GRAMMAR.items()
}
_MORE = """apple button candle dragon engine feather guitar hammer island jacket kettle lemon mirror needle orange
    pencil rabbit shadow table umbrella velvet whistle yogurt zebra bridge cloud dance flower ghost honey jump knife
    lamp moon night ocean plane queen rain stone tree voice water young happy follow morning music people simple under
    winter"""
WORDS: dict[str, list[str]] = {k: sorted({w for s in v for w in s.split() if len(w) > 1}) for k, v in SENTENCES.items()}
WORDS["EN"] = sorted({*WORDS["EN"], *_MORE.split()})
