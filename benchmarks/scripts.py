"""Whether search and selection find words in scripts of every kind: `python -m benchmarks.scripts`.

A script has three statements and, for each, a query of words that stand in it. A query is found if its statement comes
first: among the pages of `docs` and of a folder of `web`, and among items of a pool by the lexical selector.
"""

# ruff: noqa: RUF001 - letters of other scripts are the point

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from internalize.environments.docs.corpus import folder_pages
from internalize.environments.docs.env import Search
from internalize.environments.web.sources import Folder
from internalize.experience.selectors.lexical import LexicalSelector
from internalize.records import Experience, Message

STATEMENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "English": (
        ("The pressure of the pump is four bar.", "pump pressure"),
        ("The valve opens at ninety degrees.", "valve degrees"),
        ("The filter is changed in spring.", "filter spring"),
    ),
    "German": (
        ("Die Düse der Pumpe ist für Öl geprüft.", "Düse Öl"),
        ("Das Ventil öffnet bei neunzig Grad.", "öffnet Ventil"),
        ("Der Filter wird im Frühling gewechselt.", "Frühling"),
    ),
    "Vietnamese": (
        ("Áp suất của máy bơm là bốn bar.", "áp suất máy bơm"),
        ("Van mở ở chín mươi độ.", "van mở"),
        ("Bộ lọc được thay vào mùa xuân.", "bộ lọc mùa xuân"),
    ),
    "Russian": (
        ("Давление насоса составляет четыре бара.", "давление насоса"),
        ("Клапан открывается при девяноста градусах.", "клапан градусах"),
        ("Фильтр меняют весной.", "фильтр весной"),
    ),
    "Greek": (
        ("Η πίεση της αντλίας είναι τέσσερα μπαρ.", "πίεση αντλίας"),
        ("Η βαλβίδα ανοίγει στους ενενήντα βαθμούς.", "βαλβίδα βαθμούς"),
        ("Το φίλτρο αλλάζει την άνοιξη.", "ΦΊΛΤΡΟ άνοιξη"),
    ),
    "Arabic": (
        ("ضغط المضخة أربعة بار.", "ضغط المضخة"),
        ("يفتح الصمام عند تسعين درجة.", "الصمام درجة"),
        ("يتم تغيير المرشح في الربيع.", "المرشح الربيع"),
    ),
    "Hebrew": (
        ("הלחץ של המשאבה הוא ארבעה בר.", "הלחץ המשאבה"),
        ("השסתום נפתח בתשעים מעלות.", "השסתום מעלות"),
        ("המסנן מוחלף באביב.", "המסנן באביב"),
    ),
    "Hindi": (
        ("पंप का दबाव चार बार है।", "पंप दबाव"),
        ("वाल्व नब्बे डिग्री पर खुलता है।", "वाल्व डिग्री"),
        ("फ़िल्टर वसंत में बदला जाता है।", "फ़िल्टर वसंत"),
    ),
    "Thai": (
        ("ความดันของปั๊มคือสี่บาร์", "ความดันปั๊ม"),
        ("วาล์วเปิดที่เก้าสิบองศา", "วาล์วองศา"),
        ("เปลี่ยนไส้กรองในฤดูใบไม้ผลิ", "ไส้กรอง"),
    ),
    "Chinese": (
        ("水泵的压力为四巴。", "水泵压力"),
        ("锅炉的阀门在九十度时打开。", "阀门"),
        ("过滤器在春天更换。", "过滤器 春天"),
    ),
    "Japanese": (
        ("ポンプの圧力は四バールです。", "ポンプの圧力"),
        ("弁は九十度で開きます。", "弁 九十度"),
        ("フィルターは春に交換します。", "フィルター交換"),
    ),
    "Korean": (
        ("펌프의 압력은 사 바입니다.", "펌프 압력"),
        ("밸브는 구십 도에서 열립니다.", "밸브"),
        ("필터는 봄에 교체합니다.", "필터 교체"),
    ),
}  # fmt: skip


def pages(folder: Path, script: str) -> dict[str, int]:
    """Write the statements as pages; the number of each statement by the name of its page."""
    for number, (statement, _) in enumerate(STATEMENTS[script]):
        (folder / f"{number}.md").write_text(f"{statement}\n", encoding="utf-8")
    return {f"{number}.md": number for number in range(len(STATEMENTS[script]))}


def found_in_docs(script: str) -> int:
    """Queries whose statement is the first page found."""
    with tempfile.TemporaryDirectory() as place:
        numbers, search = pages(Path(place), script), Search(folder_pages(Path(place)))
        first = [next(iter(search(query)), "") for _, query in STATEMENTS[script]]
        return sum(numbers.get(name) == number for number, name in enumerate(first))


def found_in_folder(script: str) -> int:
    """The same for a folder of `web`."""
    with tempfile.TemporaryDirectory() as place:
        numbers, folder = pages(Path(place), script), Folder(Path(place))
        hits = [next(iter(folder.search(query, 3)), None) for _, query in STATEMENTS[script]]
        return sum(hit is not None and numbers[hit.url] == number for number, hit in enumerate(hits))


def selected(script: str) -> int:
    """Queries at which the selector shows the statement as the first item."""
    items = [Experience.new(statement, "principle", "self") for statement, _ in STATEMENTS[script]]
    right = 0
    for item, (_, query) in zip(items, STATEMENTS[script], strict=True):
        asked, acted = Message(role="user", content="?"), Message(role="assistant", content="search")
        seen = [asked, acted, Message(role="tool", content=query)]
        ids, _ = asyncio.run(LexicalSelector().select(seen, items, 1))
        right += ids == (item.id,)
    return right


def main() -> None:
    print(f"{'script':12}{'docs':>8}{'web':>8}{'lexical':>9}   of {len(STATEMENTS['English'])} queries each")
    totals = [0, 0, 0]
    for script in STATEMENTS:
        counts = found_in_docs(script), found_in_folder(script), selected(script)
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        print(f"{script:12}{counts[0]:8}{counts[1]:8}{counts[2]:9}")
    print(f"{'all':12}{totals[0]:8}{totals[1]:8}{totals[2]:9}   of {sum(map(len, STATEMENTS.values()))}")


if __name__ == "__main__":
    main()
