package strictjson_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"assay.dev/assay/attest/strictjson"
)

// Object, Array and String give what encoding/json gives, or an error where it does.
func same(t *testing.T, data []byte) {
	t.Helper()
	var m map[string]json.RawMessage
	wantErr := json.Unmarshal(data, &m)
	got, err := strictjson.Object(data)
	if kind := strictjson.Kind(data); kind == "object" && ((err == nil) != (wantErr == nil) || err == nil && !reflect.DeepEqual(m, got)) {
		t.Errorf("Object(%q) = %q %v, want %q %v", data, got, err, m, wantErr)
	}
	var a []json.RawMessage
	wantErr = json.Unmarshal(data, &a)
	list, err := strictjson.Array(data)
	if kind := strictjson.Kind(data); kind == "array" && ((err == nil) != (wantErr == nil) || err == nil && !reflect.DeepEqual(a, list)) {
		t.Errorf("Array(%q) = %q %v, want %q %v", data, list, err, a, wantErr)
	}
	var s string
	wantErr = json.Unmarshal(data, &s)
	text, err := strictjson.String(data)
	if kind := strictjson.Kind(data); kind == "string" && ((err == nil) != (wantErr == nil) || err == nil && text != s) {
		t.Errorf("String(%q) = %q %v, want %q %v", data, text, err, s, wantErr)
	}
}

var splits = []string{
	`{}`, `[]`, `""`, ` { "a" : 1 , "b":[ 1, {"c":"}\""} ] , "d":{"e":{}} } `, `[1,"a",[],{},null,true, -1.5e3 ]`, `{"a":1,"a":2}`, `{"\u0061":1}`,
	`"a\"b"`, `"a`, `{"a"}`, `{"a":}`, `[1,]`, `{"a":[}`, `[[[]]`, "\"\x01\"", "\"\xff\"", `"é"`, `{"":""}`, `{"a":"\\"}`, `["\\",","]`, `{"a":1}}`, `[1]x`, `"a" "b"`,
}

func TestSplit(t *testing.T) {
	for _, s := range splits {
		same(t, []byte(s))
	}
}

func FuzzSplit(f *testing.F) {
	for _, s := range splits {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) <= 1<<14 {
			same(t, data)
		}
	})
}
