package unicheck

// scanner decides about characters one after the other; what precedes one
// decides whether it has an honest use.
type scanner struct {
	prev     rune // the character before
	selector bool // and it was a variation selector
}

// next returns what is wrong with c, or nothing.
func (s *scanner) next(c rune) (name string, sev Severity) {
	prev, selector := s.prev, s.selector
	s.prev, s.selector = c, isSelector(c)
	if name := bidi(c); name != "" {
		return name, Failure
	}
	switch {
	case c == 0x200C || c == 0x200D:
		// Joiners shape letters of many scripts and hold emoji together. After
		// Latin, Greek or Cyrillic, or nothing, they only hide.
		if prev < 0x0590 {
			return "ZERO WIDTH JOINER OR NON-JOINER", Warning
		}
	case c >= 0xFE00 && c <= 0xFE0F:
		// Chooses how a symbol looks; keycaps have a digit before it.
		if selector || prev < 0x80 && !keycap(prev) {
			return "VARIATION SELECTOR", Warning
		}
	case c >= 0xE0100 && c <= 0xE01EF:
		// Chooses between forms of an ideograph, one at a time. In a row they
		// carry hidden bytes.
		if selector || prev < 0x2E80 {
			return "VARIATION SELECTOR SUPPLEMENT", Warning
		}
	default:
		return invisible(c), Warning
	}
	return "", ""
}

func isSelector(c rune) bool {
	return c >= 0xFE00 && c <= 0xFE0F || c >= 0xE0100 && c <= 0xE01EF
}

func keycap(c rune) bool { return c >= '0' && c <= '9' || c == '#' || c == '*' }

// bidi names the characters that reorder what follows them.
func bidi(c rune) string {
	switch c {
	case 0x061C:
		return "ARABIC LETTER MARK"
	case 0x200E:
		return "LEFT-TO-RIGHT MARK"
	case 0x200F:
		return "RIGHT-TO-LEFT MARK"
	case 0x202A:
		return "LEFT-TO-RIGHT EMBEDDING"
	case 0x202B:
		return "RIGHT-TO-LEFT EMBEDDING"
	case 0x202C:
		return "POP DIRECTIONAL FORMATTING"
	case 0x202D:
		return "LEFT-TO-RIGHT OVERRIDE"
	case 0x202E:
		return "RIGHT-TO-LEFT OVERRIDE"
	case 0x2066:
		return "LEFT-TO-RIGHT ISOLATE"
	case 0x2067:
		return "RIGHT-TO-LEFT ISOLATE"
	case 0x2068:
		return "FIRST STRONG ISOLATE"
	case 0x2069:
		return "POP DIRECTIONAL ISOLATE"
	}
	return ""
}

// invisible names characters that show nothing wherever they stand.
func invisible(c rune) string {
	switch {
	case c == 0x00AD:
		return "SOFT HYPHEN"
	case c == 0x034F:
		return "COMBINING GRAPHEME JOINER"
	case c == 0x115F || c == 0x1160 || c == 0x3164 || c == 0xFFA0:
		return "HANGUL FILLER"
	case c == 0x17B4 || c == 0x17B5:
		return "KHMER INHERENT VOWEL"
	case c == 0x180E:
		return "MONGOLIAN VOWEL SEPARATOR"
	case c == 0x200B:
		return "ZERO WIDTH SPACE"
	case c >= 0x2060 && c <= 0x2064:
		return "INVISIBLE OPERATOR"
	case c >= 0x206A && c <= 0x206F:
		return "DEPRECATED FORMAT CHARACTER"
	case c == 0xFEFF:
		return "ZERO WIDTH NO-BREAK SPACE"
	case c >= 0xFFF9 && c <= 0xFFFB:
		return "INTERLINEAR ANNOTATION"
	case c >= 0xE0000 && c <= 0xE007F:
		return "TAG"
	}
	return ""
}
