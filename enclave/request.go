package enclave

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/seal"
	"github.com/mrgc/mrgc/internal/size"
)

// maxDepth bounds how deep a request's JSON nests.
const maxDepth = 64

// commonFields are the fields of OpenAI's API, and of vLLM's additions to it,
// that both operations take. What is not listed is refused: engines have fields
// that reach beyond one request (slots, caches, adapters, files).
var commonFields = []string{
	"model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed",
	"presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "user", "cache_salt",
}

var fieldsOf = map[seal.Operation]map[string]bool{
	seal.OpChatCompletions: fieldSet("messages", "max_completion_tokens", "logprobs", "top_logprobs", "response_format",
		"tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "metadata", "store", "safety_identifier", "verbosity"),
	seal.OpCompletions: fieldSet("prompt", "suffix", "echo", "best_of", "logprobs"),
}

// unforwarded are the accepted fields that identify people or ask for storage,
// for which the engine has no use, and the salt, which the enclave makes itself.
var unforwarded = []string{"user", "metadata", "store", "safety_identifier", "cache_salt"}

func fieldSet(more ...string) map[string]bool {
	set := make(map[string]bool, len(commonFields)+len(more))
	for _, name := range append(more, commonFields...) {
		set[name] = true
	}
	return set
}

// engineRequest is what goes to the engine.
type engineRequest struct {
	body       []byte // JSON, written anew: the engine sees exactly what was checked
	stream     bool
	usageAsked bool         // by the enclave alone: the tenant does not expect the event that reports it
	size       size.Buckets // what its Mrgc-Size header must say
	ownSalt    []byte       // the tenant's own cache_salt; nil: none
}

// checkSize compares what the client declared to those who route the request
// with what is in it: whoever declares less than it sends would have its share of
// the instances at others' expense. Nothing declared is no lie.
func (r *engineRequest) checkSize(declared string) *api.Error {
	if want := r.size.String(); declared != "" && declared != want {
		return api.Errorf(http.StatusBadRequest, "size_mismatch",
			"header %s is %.64q, and the request's size is %q: send that, or leave the header out", api.HeaderSize, declared, want)
	}
	return nil
}

// checkRequest reads a request's JSON strictly (RFC 8259, and no duplicate
// names, I-JSON of RFC 7493 section 2.3), refuses what the engine must not see,
// and writes it anew. Its errors are sealed before they leave, but still repeat
// no values.
func checkRequest(op seal.Operation, model string, body []byte) (engineRequest, *api.Error) {
	bad := func(format string, args ...any) (engineRequest, *api.Error) {
		return engineRequest{}, api.Errorf(http.StatusBadRequest, "invalid_request", format, args...)
	}
	if !utf8.Valid(body) {
		return bad("the request is not valid UTF-8")
	}
	if err := walk(body); err != nil {
		return bad("the request is not acceptable JSON: %v", err)
	}
	var fields map[string]json.RawMessage
	defer func() {
		for _, copied := range fields {
			clear(copied)
		}
	}()
	if err := json.Unmarshal(body, &fields); err != nil {
		return bad("the request is not a JSON object")
	}
	allowed := fieldsOf[op]
	for name := range fields {
		if !allowed[name] {
			e := api.Errorf(http.StatusBadRequest, "unknown_field", "field %.64q is not supported for %s", name, op)
			e.Param = name
			return engineRequest{}, e
		}
	}
	var named string
	if err := json.Unmarshal(fields["model"], &named); err != nil || named != model {
		return bad("the sealed request's model is not the one in the %s header", api.HeaderModel)
	}
	var stream bool
	if raw, ok := fields["stream"]; ok && json.Unmarshal(raw, &stream) != nil {
		return bad("field \"stream\" is not a boolean")
	}
	request := engineRequest{stream: stream, size: size.Of(fields)}
	request.usageAsked = stream && askForUsage(fields)
	var err error
	if request.ownSalt, err = ownSalt(fields); err != nil {
		return bad("%v", err)
	}
	if request.body, err = rewrite(fields); err != nil {
		return bad("the request cannot be written as JSON")
	}
	return request, nil
}

// askForUsage has a stream report what it has used, for the end of the sealed
// answer. It says whether the tenant had not asked for it. The other stream
// options say how to report usage, and go with the tenant's not asking.
func askForUsage(fields map[string]json.RawMessage) bool {
	var options map[string]json.RawMessage
	if given, ok := fields["stream_options"]; ok && json.Unmarshal(given, &options) != nil {
		return false // the engine refuses it
	}
	switch string(options["include_usage"]) {
	case "true":
		return false
	case "false", "null", "":
		clear(fields["stream_options"])
		fields["stream_options"] = json.RawMessage(`{"include_usage":true}`)
		return true
	default:
		return false // the engine refuses it
	}
}

// rewrite writes what the engine gets, in order of the names, which are known
// and need no escapes. It does not use json.Marshal, which works in pooled
// buffers that nobody clears.
func rewrite(fields map[string]json.RawMessage) ([]byte, error) {
	size := len("{}")
	for name, value := range fields {
		if slices.Contains(unforwarded, name) {
			continue
		}
		size += len(`"":,`) + len(name) + len(value)
	}
	out := bytes.NewBuffer(make([]byte, 0, size))
	separator := "{"
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if slices.Contains(unforwarded, name) {
			continue
		}
		out.WriteString(separator + `"` + name + `":`)
		if err := json.Compact(out, fields[name]); err != nil {
			return nil, err
		}
		separator = ","
	}
	out.WriteByte('}') // fields holds the model at least
	return out.Bytes(), nil
}

// errRemoteURL is refused because the engine would fetch what the tenant's
// message names: a request forged from outside, from inside the cluster.
var errRemoteURL = errors.New("messages may carry data: URLs only, nothing is fetched")

// partMembers are the members of the parts of a message's content, and mediaMembers
// those of the objects in these. What is not listed is refused: vLLM keeps media of all
// tenants by the "uuid" that a part gives them and gives them back to whoever names it,
// and what it calls embeddings are Python objects, which it loads.
var (
	partMembers = map[string]bool{
		"type": true, "text": true, "refusal": true, "thinking": true,
		"image_url": true, "audio_url": true, "video_url": true, "input_audio": true,
	}
	mediaMembers = map[string]bool{"url": true, "detail": true, "data": true, "format": true}
)

// within is how far into a request's messages a value is.
type within int

const (
	outside within = iota
	inMessages
	inContent // of a message
	inPart    // of its content
)

// member is where a member of an object that is here, at depth, is itself; false: it is
// not known.
func (at within) member(name string, depth int) (within, bool) {
	switch {
	case at == outside && depth == 0 && name == "messages":
		return inMessages, true
	case at == inMessages && name == "content":
		return inContent, true
	case at == inContent:
		return inPart, partMembers[name]
	case at == inPart:
		return inPart, mediaMembers[name]
	default:
		return at, true
	}
}

// walk checks what encoding/json lets pass: duplicate names, depth, trailing
// data, and inside messages remote URLs, and parts with members that are not known.
func walk(body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	w := walker{dec: dec}
	if err := w.value("", 0, outside); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the end")
	}
	return nil
}

type walker struct{ dec *json.Decoder }

// value reads one value: the member called name of an object at depth.
func (w *walker) value(name string, depth int, at within) error {
	if depth > maxDepth {
		return errors.New("nested too deep")
	}
	token, err := w.dec.Token()
	if err != nil {
		return errors.New("syntax error") // the decoder's own error quotes the input
	}
	switch token := token.(type) {
	case json.Delim:
		if token == '{' {
			return w.object(depth, at)
		}
		return w.array(name, depth, at)
	case string:
		if at != outside && namesURL(name) && !strings.HasPrefix(token, "data:") {
			return errRemoteURL
		}
	}
	return nil
}

func namesURL(name string) bool {
	return name == "url" || strings.HasSuffix(name, "_url")
}

func (w *walker) object(depth int, at within) error {
	seen := map[string]bool{}
	for w.dec.More() {
		token, err := w.dec.Token()
		if err != nil {
			return errors.New("syntax error")
		}
		name, _ := token.(string)
		if seen[name] {
			return errors.New("a name occurs twice in an object")
		}
		seen[name] = true
		inside, known := at.member(name, depth)
		if !known {
			return fmt.Errorf("member %.64q is not supported in a message's content", name)
		}
		if err := w.value(name, depth+1, inside); err != nil {
			return err
		}
	}
	return w.end()
}

func (w *walker) array(name string, depth int, at within) error {
	for w.dec.More() {
		if err := w.value(name, depth+1, at); err != nil {
			return err
		}
	}
	return w.end()
}

func (w *walker) end() error {
	if _, err := w.dec.Token(); err != nil {
		return errors.New("syntax error")
	}
	return nil
}
