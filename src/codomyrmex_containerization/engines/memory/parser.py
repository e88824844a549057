"""How is a shell script read into a tree?"""

from __future__ import annotations

import re

from codomyrmex_containerization.engines.memory.syntax import (
    Arithmetic,
    Case,
    Command,
    For,
    Function,
    Group,
    If,
    Item,
    Loop,
    Parameter,
    Part,
    Pipeline,
    Redirected,
    Redirection,
    Script,
    Simple,
    Substitution,
    SyntaxProblem,
    Text,
    Word,
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_SPECIAL = "@*#?$!-0123456789"
_OPERATORS = ("&&", "||", ";;", "<<-", "<<", ">>", "<&", ">&", "<>", ">|", ";", "&", "|", "<", ">", "(", ")", "\n")
_REDIRECTIONS = ("<<-", "<<", ">>", "<&", ">&", "<>", ">|", "<", ">")
_RESERVED = frozenset("if then elif else fi while until do done for case esac { } ! in".split())
_DEEPEST = 60


def parse(text: str) -> Script:
    """Parse a script. Raises SyntaxProblem."""
    parser = _Parser(text)
    script = parser.script(frozenset())
    if parser.peek():
        raise SyntaxProblem(f"syntax error: unexpected {parser.shown()}")
    return script


def parse_text(text: str) -> Word:
    """Parse text as if it stood between double quotes: for here-documents and default values."""
    parser = _Parser(text)
    return Word(tuple(parser.double_quoted(until="")))


class _Parser:
    def __init__(self, text: str, depth: int = 0) -> None:
        self._text = text.replace("\\\n", "")
        self._at = 0
        self._depth = depth
        self._documents: list[tuple[Redirection, str, bool, bool]] = []

    # ------------------------------------------------------------------ tokens

    def _blanks(self) -> None:
        while self._at < len(self._text):
            one = self._text[self._at]
            if one in " \t":
                self._at += 1
            elif one == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            else:
                return

    def peek(self) -> str:
        """Return the operator or the plain word that comes next; empty at the end."""
        self._blanks()
        for one in _OPERATORS:
            if self._text.startswith(one, self._at):
                return one
        match = re.compile(r"[^\s;&|<>()]+").match(self._text, self._at)
        return match[0] if match else ""

    def shown(self) -> str:
        return {"": "end of file", "\n": "newline"}.get(self.peek(), f'"{self.peek()}"')

    def _take(self, token: str) -> None:
        if self.peek() != token:
            raise SyntaxProblem(f'syntax error: unexpected {self.shown()} (expecting "{token}")')
        self._at += len(token)
        if token == "\n":  # noqa: S105  a token of the grammar
            self._read_documents()

    def _accept(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self._take(token)
        return True

    def _newlines(self) -> None:
        while self._accept("\n"):
            pass

    # ---------------------------------------------------------------- grammar

    def script(self, ends: frozenset[str]) -> Script:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise SyntaxProblem("syntax error: too deeply nested")
        items: list[Item] = []
        while True:
            while self.peek() in (";", "\n") and (self.peek() == "\n" or items):
                self._take(self.peek())
            if not self.peek() or self.peek() in ends or self.peek() in (")", ";;"):
                break
            pipelines = [("", self._pipeline())]
            while self.peek() in ("&&", "||"):
                operator = self.peek()
                self._take(operator)
                self._newlines()
                pipelines.append((operator, self._pipeline()))
            background = self._accept("&")
            items.append(Item(tuple(pipelines), background))
            if not background and self.peek() not in (";", "\n"):
                break
        self._depth -= 1
        return Script(tuple(items))

    def _body(self, *ends: str) -> Script:
        body = self.script(frozenset(ends))
        if not body.items:
            raise SyntaxProblem(f"syntax error: unexpected {self.shown()}")
        return body

    def _pipeline(self) -> Pipeline:
        negated = self._accept("!")
        commands = [self._command()]
        while self._accept("|"):
            self._newlines()
            commands.append(self._command())
        return Pipeline(tuple(commands), negated)

    def _command(self) -> Command:
        found = self._compound()
        if found is None:
            return self._simple()
        redirections: list[Redirection] = []
        while self._redirection(redirections):
            pass
        return Redirected(found, tuple(redirections)) if redirections else found

    def _compound(self) -> Command | None:
        match self.peek():
            case "if":
                return self._if()
            case "while" | "until" as word:
                self._take(word)
                condition = self._body("do")
                return Loop(word == "until", condition, self._do())
            case "for":
                return self._for()
            case "case":
                return self._case()
            case "{":
                self._take("{")
                body = self._body("}")
                self._take("}")
                return Group(body, own_process=False)
            case "(":
                self._take("(")
                body = self._body()
                self._take(")")
                return Group(body, own_process=True)
            case token if match_function(self._text, self._at):
                self._take(token)
                self._take("(")
                self._take(")")
                self._newlines()
                return Function(token, self._command())
        return None

    def _do(self) -> Script:
        self._take("do")
        body = self._body("done")
        self._take("done")
        return body

    def _if(self) -> If:
        self._take("if")
        branches, otherwise = [], None
        while True:
            condition = self._body("then")
            self._take("then")
            branches.append((condition, self._body("elif", "else", "fi")))
            if not self._accept("elif"):
                break
        if self._accept("else"):
            otherwise = self._body("fi")
        self._take("fi")
        return If(tuple(branches), otherwise)

    def _for(self) -> For:
        self._take("for")
        name = self.peek()
        if not _NAME.fullmatch(name):
            raise SyntaxProblem("syntax error: bad for loop variable")
        self._take(name)
        self._newlines()
        words: tuple[Word, ...] | None = None
        if self._accept("in"):
            words = tuple(self._words())
        self._accept(";")
        self._newlines()
        return For(name, words, self._do())

    def _words(self) -> list[Word]:
        words = []
        while (word := self._word()) is not None:
            words.append(word)
        return words

    def _case(self) -> Case:
        self._take("case")
        word = self._word()
        if word is None:
            raise SyntaxProblem("syntax error: case without a word")
        self._newlines()
        self._take("in")
        self._newlines()
        branches = []
        while not self._accept("esac"):
            self._accept("(")
            patterns = [self._pattern()]
            while self._accept("|"):
                patterns.append(self._pattern())
            self._take(")")
            branches.append((tuple(patterns), self.script(frozenset(("esac",)))))
            if not self._accept(";;") and self.peek() != "esac":
                raise SyntaxProblem(f"syntax error: unexpected {self.shown()}")
            self._newlines()
        return Case(word, tuple(branches))

    def _pattern(self) -> Word:
        word = self._word()
        if word is None:
            raise SyntaxProblem(f"syntax error: unexpected {self.shown()}")
        return word

    def _simple(self) -> Simple:
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirections: list[Redirection] = []
        if self.peek() in _RESERVED and self.peek() != "in":
            raise SyntaxProblem(f"syntax error: unexpected {self.shown()}")
        while True:
            if self._redirection(redirections):
                continue
            self._blanks()
            found = None if words else _ASSIGNMENT.match(self._text, self._at)
            if found:
                self._at = found.end()
                at_once = self._at < len(self._text) and self._text[self._at] not in " \t\n;&|<>()"
                assignments.append((found[0][:-1], (self._word() if at_once else None) or Word(())))
                continue
            word = self._word()
            if word is None:
                break
            words.append(word)
        if not (assignments or words or redirections):
            raise SyntaxProblem(f"syntax error: unexpected {self.shown()}")
        return Simple(tuple(assignments), tuple(words), tuple(redirections))

    def _redirection(self, found: list[Redirection]) -> bool:
        self._blanks()
        match = re.compile(r"\d?(?=[<>])").match(self._text, self._at)
        if match is None:
            return False
        self._at = match.end()
        operator = next(one for one in _REDIRECTIONS if self._text.startswith(one, self._at))
        self._at += len(operator)
        fd = int(match[0]) if match[0] else (0 if operator[0] == "<" else 1)
        word = self._word()
        if word is None:
            raise SyntaxProblem(f"syntax error: unexpected {self.shown()}")
        made = Redirection(fd, operator, word)
        if operator in ("<<", "<<-"):
            end = "".join(one.text for one in word.parts if isinstance(one, Text))
            quoted = any(isinstance(one, Text) and one.quoted for one in word.parts)
            self._documents.append((made, end, quoted, operator == "<<-"))
        found.append(made)
        return True

    def _read_documents(self) -> None:
        waiting, self._documents = self._documents, []
        for made, end, quoted, strip in waiting:
            lines = []
            while self._at < len(self._text):
                line, _, _ = self._text[self._at :].partition("\n")
                self._at += len(line) + 1
                line = line.lstrip("\t") if strip else line
                if line == end:
                    break
                lines.append(line + "\n")
            text = "".join(lines)
            made.operator = "<<"
            made.word = Word((Text(text, True),)) if quoted else parse_text(text)

    # ------------------------------------------------------------------ words

    def _word(self) -> Word | None:
        self._blanks()
        parts: list[Part] = []
        text = ""
        while self._at < len(self._text):
            one = self._text[self._at]
            if one in " \t\n;&|<>()":
                break
            if one not in "'\"\\$`":
                text += one
                self._at += 1
                continue
            if text:
                parts.append(Text(text))
                text = ""
            self._at += 1
            if one == "'":
                end = self._text.find("'", self._at)
                if end < 0:
                    raise SyntaxProblem("syntax error: unterminated quoted string")
                parts.append(Text(self._text[self._at : end], True))
                self._at = end + 1
            elif one == '"':
                parts.append(Text("", True))
                parts.extend(self.double_quoted(until='"'))
            elif one == "\\":
                parts.append(Text(self._text[self._at : self._at + 1], True))
                self._at += 1
            else:
                parts.append(self._dollar(one, quoted=False))
        if text:
            parts.append(Text(text))
        return Word(tuple(parts)) if parts else None

    def double_quoted(self, *, until: str) -> list[Part]:
        """Read up to a closing character, which is taken; empty means up to the end."""
        parts: list[Part] = []
        text = ""
        while True:
            if self._at >= len(self._text):
                if until:
                    raise SyntaxProblem("syntax error: unterminated quoted string")
                break
            one = self._text[self._at]
            self._at += 1
            if one == until:
                break
            if one == "\\" and self._text[self._at : self._at + 1] in ("$", "`", '"', "\\"):
                text += self._text[self._at]
                self._at += 1
            elif one in "$`":
                if text:
                    parts.append(Text(text, True))
                    text = ""
                parts.append(self._dollar(one, quoted=True))
            else:
                text += one
        if text:
            parts.append(Text(text, True))
        return parts

    def _dollar(self, one: str, *, quoted: bool) -> Part:
        if one == "`":
            end = self._text.find("`", self._at)
            if end < 0:
                raise SyntaxProblem("syntax error: unterminated backquote")
            quoted_script, self._at = self._text[self._at : end], end + 1
            return Substitution(_Parser(quoted_script.replace("\\$", "$"), self._depth + 1).script(frozenset()), quoted)
        if self._text.startswith("((", self._at):
            inner = self._until_balanced(2)
            if inner is not None:
                return Arithmetic(Word(tuple(_Parser(inner, self._depth + 1).double_quoted(until=""))), quoted)
        if self._text.startswith("(", self._at):
            self._at += 1
            script = self.script(frozenset())
            self._take(")")
            return Substitution(script, quoted)
        if self._text.startswith("{", self._at):
            return self._braced(quoted)
        name = _NAME.match(self._text, self._at)
        if name:
            self._at = name.end()
            return Parameter(name[0], quoted=quoted)
        if self._text[self._at : self._at + 1] in _SPECIAL and self._at < len(self._text):
            self._at += 1
            return Parameter(self._text[self._at - 1], quoted=quoted)
        return Text("$", quoted)

    def _until_balanced(self, opened: int) -> str | None:
        at, depth = self._at + opened, opened
        while at < len(self._text):
            depth += {"(": 1, ")": -1}.get(self._text[at], 0)
            at += 1
            if depth == 0:
                if self._text[at - 2] != ")":
                    return None
                inner, self._at = self._text[self._at + opened : at - opened], at
                return inner
        return None

    def _braced(self, quoted: bool) -> Part:
        self._at += 1
        if re.compile(r"#[A-Za-z_0-9@*?#]").match(self._text, self._at):
            end = self._text.find("}", self._at)
            length_of, self._at = self._text[self._at + 1 : end], end + 1
            return Parameter(length_of, "#", quoted=quoted)
        name = _NAME.match(self._text, self._at) or re.compile(r"\d+|[@*#?$!-]").match(self._text, self._at)
        if name is None:
            raise SyntaxProblem("syntax error: bad substitution")
        self._at = name.end()
        operator = re.compile(r":?[-+=?]|##?|%%?|").match(self._text, self._at)
        used = operator[0] if operator else ""
        self._at += len(used)
        parts = self.double_quoted(until="}")
        if parts and not used:
            raise SyntaxProblem("syntax error: bad substitution")
        return Parameter(name[0], used, Word(tuple(parts)) if used else None, quoted)


def match_function(text: str, at: int) -> bool:
    """Say whether `name()` stands there."""
    return re.compile(r"[A-Za-z_][A-Za-z0-9_]*[ \t]*\([ \t]*\)").match(text, at) is not None
