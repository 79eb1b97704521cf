// Package size is the rule by which a request's size is declared to those who
// route it and may not read it: the Mrgc-Size header, which docs/protocol.md
// specifies.
//
// The client declares the size of what it seals, and the enclave, which is the
// first to see the request, measures it again by the same function:
//
//	declared := size.Of(fields).String() // "512/1024"
//
// Prompt and output are rounded up to powers of two between [Min] and [Max], so
// that a router learns whether a request is small or large and nothing finer.
// What an answer has used is told the instance's parent in the same form
// ([Round]).
//
// The package is pure and part of the measured enclave binary: it imports the
// standard library only, keeps nothing, and copies no text of a prompt.
package size

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// Limits of the buckets, and what is declared for a request that names no limit
// to its output, in tokens.
const (
	Min           = 64
	Max           = 1 << 20 // stands for anything larger, too
	DefaultOutput = 1024
)

// bytesPerToken is what a token of text is taken to be. Tokenizers differ, and
// the client need not know the model's.
const bytesPerToken = 4

// Buckets are a request's sizes in tokens: powers of two from [Min] to [Max].
type Buckets struct {
	Prompt int
	Output int // the most that the answer may be; of an answer, what it was
}

// Of measures a request of OpenAI's API by the members of its JSON object, which
// must be valid JSON. The prompt is the text in messages, prompt and suffix, at
// [bytesPerToken], where media count nothing, and all of tools and response_format:
// engines read schemas as JSON, names and all. The output is the larger of max_tokens
// and max_completion_tokens, or [DefaultOutput].
func Of(fields map[string]json.RawMessage) Buckets {
	text := jsonBytes(fields["tools"]) + jsonBytes(fields["response_format"])
	for _, name := range []string{"messages", "prompt", "suffix"} {
		text += textBytes(fields[name], name == "prompt")
	}
	output := max(count(fields["max_tokens"]), count(fields["max_completion_tokens"]))
	if output == 0 {
		output = DefaultOutput
	}
	return Round((text+bytesPerToken-1)/bytesPerToken, output)
}

// Round puts numbers of tokens into their buckets.
func Round(promptTokens, outputTokens int) Buckets {
	return Buckets{Prompt: bucket(promptTokens), Output: bucket(outputTokens)}
}

// bucket is the smallest power of two from Min to Max that is not below n; of
// what is above Max, it is Max.
func bucket(n int) int {
	switch {
	case n <= Min:
		return Min
	case n >= Max:
		return Max
	default:
		return 1 << bits.Len(uint(n-1))
	}
}

// String is the header's value: "512/1024".
func (b Buckets) String() string { return strconv.Itoa(b.Prompt) + "/" + strconv.Itoa(b.Output) }

// Parse reads what [Buckets.String] gives of buckets, and nothing else.
func Parse(text string) (Buckets, error) {
	prompt, output, _ := strings.Cut(text, "/")
	b := Buckets{Prompt: number(prompt), Output: number(output)}
	if b != Round(b.Prompt, b.Output) || b.String() != text {
		return Buckets{}, fmt.Errorf("size %.32q: want prompt/output, two powers of two from %d to %d", text, Min, Max)
	}
	return b, nil
}

// number is 0 for what is none.
func number(digits string) int {
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}

// count reads a number of tokens: a positive integer in plain digits. All else
// is as if it were not there: it is the engine's to refuse.
func count(raw json.RawMessage) int {
	n, err := strconv.Atoi(string(raw))
	if err != nil && !errors.Is(err, strconv.ErrRange) { // out of range is the largest int
		return 0
	}
	return max(n, 0)
}

// jsonBytes is how long a JSON value is without white space, its strings in UTF-8.
func jsonBytes(value []byte) int {
	total := 0
	for i := 0; i < len(value); {
		switch value[i] {
		case '"':
			literal := stringAt(value, i)
			i += len(literal)
			total += len(`""`) + unquotedBytes(literal)
		case ' ', '\t', '\r', '\n':
			i++
		default:
			i++
			total++
		}
	}
	return total
}

// textBytes adds up the lengths, in UTF-8, of the strings in a JSON value: not
// the names of members, and not media. With tokens, each number is a token.
func textBytes(value []byte, tokens bool) int {
	total := 0
	media := false // the member whose value comes next holds media
	for i := 0; i < len(value); {
		switch c := value[i]; {
		case c == '"':
			literal := stringAt(value, i)
			i += len(literal)
			if rest := bytes.TrimLeft(value[i:], " \t\r\n"); len(rest) > 0 && rest[0] == ':' {
				media = isMedia(literal)
				continue
			}
			if !media {
				total += unquotedBytes(literal)
			}
		case c == '-' || c >= '0' && c <= '9':
			i += numberLen(value[i:])
			if tokens {
				total += bytesPerToken
			}
		default:
			if c != ':' && c != ' ' && c != '\t' && c != '\r' && c != '\n' {
				media = false // a string right after the name is media, and nothing else is
			}
			i++
		}
	}
	return total
}

// stringAt is the string literal that starts at i, quotes included.
func stringAt(value []byte, i int) []byte {
	for end := i + 1; end < len(value); end++ {
		switch value[end] {
		case '\\':
			end++
		case '"':
			return value[i : end+1]
		}
	}
	return value[i:]
}

func numberLen(b []byte) int {
	return len(b) - len(bytes.TrimLeft(b, "+-.eE0123456789"))
}

// isMedia says whether the member of this name holds a picture, a sound or a
// file when its value is a string: url, image_url, data, file_data.
func isMedia(literal []byte) bool {
	var name string
	if json.Unmarshal(literal, &name) != nil {
		return false
	}
	for _, kind := range []string{"url", "data"} {
		if name == kind || strings.HasSuffix(name, "_"+kind) {
			return true
		}
	}
	return false
}

// unquotedBytes is how long a string literal's text is in UTF-8. Half a
// surrogate pair counts as U+FFFD, 3 bytes, which decoders put in its place.
func unquotedBytes(literal []byte) int {
	text := bytes.TrimSuffix(literal[1:], []byte(`"`))
	n := 0
	for {
		plain := bytes.IndexByte(text, '\\')
		if plain < 0 {
			return n + len(text)
		}
		length, in := escapeAt(text[plain:])
		n += plain + length
		text = text[min(plain+in, len(text)):]
	}
}

// escapeAt is the length in UTF-8 of the escape at the start of text, and of the
// escape itself.
func escapeAt(text []byte) (length, in int) {
	code, ok := unicodeEscape(text)
	switch {
	case !ok:
		return 1, 2
	case code < 0x80:
		return 1, 6
	case code < 0x800:
		return 2, 6
	case code&^0x3ff == 0xd800:
		if low, ok := unicodeEscape(text[6:]); ok && low&^0x3ff == 0xdc00 {
			return 4, 12
		}
	}
	return 3, 6
}

// unicodeEscape reads a \uXXXX at the start of text.
func unicodeEscape(text []byte) (code uint64, ok bool) {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	code, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	return code, err == nil
}
