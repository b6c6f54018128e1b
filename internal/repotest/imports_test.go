package repotest_test

import (
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"assay.dev/assay/internal/repotest"
	"assay.dev/assay/verify"
)

// graph is listed once for all tests.
var graph = sync.OnceValues(func() (repotest.Graph, error) {
	root, err := repotest.Root()
	if err != nil {
		return nil, err
	}
	return repotest.Load(root)
})

// What the rules are about. An entry that ends in "/" stands for all below it;
// one that does not stands for that package alone.
var (
	// Not all of k8s.io: klog, which prints lines, comes with libraries that know
	// nothing of Kubernetes.
	kubernetes = []string{
		"k8s.io/api/", "k8s.io/apimachinery/", "k8s.io/client-go/", "k8s.io/apiserver/", "k8s.io/apiextensions-apiserver/",
		"k8s.io/kube-openapi/", "knative.dev/", "sigs.k8s.io/controller-runtime/",
	}
	kubeClient = []string{"k8s.io/client-go/", "knative.dev/pkg/client/", "github.com/tektoncd/pipeline/pkg/client/", "github.com/tektoncd/chains/pkg/client/"}
	tekton     = []string{"github.com/tektoncd/"}
	rego       = []string{"github.com/open-policy-agent/"}
	yamlParser = []string{"sigs.k8s.io/yaml", "sigs.k8s.io/yaml/", "gopkg.in/yaml.v2", "gopkg.in/yaml.v3", "go.yaml.in/", "github.com/goccy/go-yaml", "github.com/goccy/go-yaml/"}
	signer     = []string{"assay.dev/assay/attest"} // the side that holds private keys; what lies below it only checks
	keyDrivers = []string{
		"github.com/sigstore/sigstore/pkg/signature/kms/",
		"github.com/miekg/pkcs11",
		"assay.dev/assay/attest/kms", "assay.dev/assay/attest/pkcs11", "assay.dev/assay/attest/fulcio",
	}
	signing = all(signer, keyDrivers)
	// What decrypts key files is linked by sigstore's verifier too, which calls none
	// of it; nobody of ours but package attest may.
	decrypting = []string{"github.com/secure-systems-lab/go-securesystemslib/encrypted"}
	sandboxes  = []string{"assay.dev/assay/sandbox/oci", "assay.dev/assay/sandbox/netns", "assay.dev/assay/observe/measure"}
)

func all(lists ...[]string) []string { return slices.Concat(lists...) }

// rules say who must not reach what.
var rules = []struct {
	who    string // package, relative to the module; with "/…" all below it too
	except []string
	direct bool // only what it imports itself
	what   []string
	why    string
}{
	{
		who: "verify/…", what: all(kubernetes, tekton, signing),
		why: "a verifier runs anywhere, starts at once and holds no key: read keys in the wiring (internal/cli) and hand them in",
	},
	{
		who: "policy/…", what: all(kubernetes, tekton, signing),
		why: "a policy judges evidence and nothing else: put what it should know into the evidence or the rule data",
	},
	{
		who: "provenance/…", direct: true, what: all(kubeClient, signing),
		why: "provenance is a pure function of Tekton's objects: fetch in the caller, hand objects in",
	},
	{
		who: "hint/…", direct: true, what: all(kubeClient, signing),
		why: "hints are read from objects that somebody else fetched: hand objects in",
	},
	{
		who: "provenance/…", what: signing,
		why: "who states does not sign: return the statement, let package attest sign it",
	},
	{
		who: "hint/…", what: signing,
		why: "who reads claims does not sign",
	},
	{
		who: "cmd/…", except: []string{"cmd/assay-observer"}, what: signer,
		why: "only the observer's program may hold a key: call it as a process (see internal/cli, observer), or use attest's sub-packages, which only check",
	},
	{
		// Tekton's trusted resources bring the drivers of five clouds into the
		// planner, whatever we call of Tekton. It runs as a user that owns nothing
		// and is handed no credential, so they have nothing to open.
		who: "cmd/…", except: []string{"cmd/assay-observer", "cmd/assay-planner"}, what: keyDrivers,
		why: "only the observer's program may open keys",
	},
	{
		who: "cmd/…", except: []string{"cmd/assay-executor"}, what: sandboxes,
		why: "only the executor's program runs and measures: what others need of these packages (names, types) belongs into sandbox, observe or observe/tree",
	},
	{
		who: "cmd/assay-executor", what: all(kubernetes, tekton, rego, yamlParser),
		why: "the executor is believed, so it must stay small: move what parses tenants' input out of the packages that it imports",
	},
	{
		who: "cmd/assay", what: all(kubernetes, tekton),
		why: "verify and gate must stay light: what needs Tekton's packages belongs into the planner or the observer",
	},
	{
		who: "cmd/assay-releaser", what: all(kubernetes, tekton, []string{"assay.dev/assay/ledger", "assay.dev/assay/internal/observer"}),
		why: "the releaser holds destination credentials: it judges and copies, and links nothing that it needs for neither",
	},
	{
		who: "internal/…", direct: true, what: decrypting,
		why: "keys are opened by package attest",
	},
	{
		who: "cmd/assay-log", what: all(kubernetes, tekton, rego, signer, keyDrivers, []string{"assay.dev/assay/ledger", "assay.dev/assay/internal/observer"}),
		why: "the log's key signs checkpoints and nothing else: it shares no program with the keys that sign evidence",
	},
	{
		who: "cmd/…", except: []string{"cmd/assay-log"}, what: []string{"github.com/transparency-dev/tessera"},
		why: "logs are kept by a process of their own; clients speak its protocol (attest/tlog)",
	},
	{
		who: "cmd/assayd", what: []string{"assay.dev/assay/internal/observer", "assay.dev/assay/internal/signer", "assay.dev/assay/ledger"},
		why: "what parses the objects of a cluster holds no key and knows nothing of executed runs: it asks the signer's process (attest/signing)",
	},
	{
		// Tekton's API types bring client-go's interfaces into the observer.
		who: "cmd/…", except: []string{"cmd/assayd", "cmd/assay-planner", "cmd/assay-observer"}, what: kubeClient,
		why: "what talks to a cluster belongs into assayd",
	},
	{
		who: "cmd/assay-planner", what: all(rego, []string{"assay.dev/assay/ledger", "assay.dev/assay/internal/observer", "assay.dev/assay/internal/registry"}),
		why: "the planner asks and is not believed: it has no business with the ledger, the registry's door or policy",
	},
	{
		who: "sandbox/…", what: all(tekton, kubernetes, rego, yamlParser, signing, []string{"assay.dev/assay/ledger", "assay.dev/assay/store/"}),
		why: "the sandbox runs what it is told and must not reach the signer or parse tenants' input",
	},
	{
		who: "plan", what: []string{"assay.dev/assay/pipeline/", "assay.dev/assay/sandbox/", "github.com/", "k8s.io/"},
		why: "the language between planner and executor knows neither side",
	},
	{
		who: "api/…", what: []string{"assay.dev/assay/", "github.com/"},
		why: "names are fixed below everything else",
	},
}

func TestImports(t *testing.T) {
	g, err := graph()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		var who []*repotest.Package
		if below, ok := strings.CutSuffix(r.who, "/…"); ok {
			who = g.Own(below)
		} else if p := g[repotest.Module+"/"+r.who]; p != nil {
			who = []*repotest.Package{p}
		}
		if len(who) == 0 {
			t.Errorf("rule about %s: there is no such package; mend the rule in imports_test.go", r.who)
		}
		for _, p := range who {
			name := strings.TrimPrefix(p.ImportPath, repotest.Module+"/")
			if slices.Contains(r.except, name) {
				continue
			}
			reached := p.Deps
			if r.direct {
				reached = p.Imports
			}
			for _, bad := range forbidden(reached, r.what) {
				if bad != p.ImportPath {
					t.Errorf("%s reaches %s: %s\n\tby way of %s", name, bad, r.why, strings.Join(g.Chain(p.ImportPath, bad), "\n\t     → "))
				}
			}
		}
	}
}

// forbidden returns the packages among reached that what stands for, one of each
// entry: the others come along the same way.
func forbidden(reached, what []string) []string {
	var out []string
	for _, w := range what {
		i := slices.IndexFunc(reached, func(p string) bool {
			return p == w || strings.HasSuffix(w, "/") && strings.HasPrefix(p, w)
		})
		if i >= 0 {
			out = append(out, reached[i])
		}
	}
	return out
}

// TestForbidden shows that the rules bite: what the observer and the planner
// need is seen as forbidden to others.
func TestForbidden(t *testing.T) {
	g, err := graph()
	if err != nil {
		t.Fatal(err)
	}
	observer := g[repotest.Module+"/cmd/assay-observer"].Deps
	if len(forbidden(observer, signer)) == 0 {
		t.Error("the observer does not reach package attest: the rule about signing checks nothing")
	}
	executor := g[repotest.Module+"/cmd/assay-executor"].Deps
	if got := forbidden(executor, sandboxes); len(got) != len(sandboxes) {
		t.Errorf("the executor reaches %v of %v: the rule about sandboxes checks less than it says", got, sandboxes)
	}
	planner := g[repotest.Module+"/cmd/assay-planner"].Deps
	for _, list := range [][]string{kubernetes, tekton, yamlParser} {
		if len(forbidden(planner, list)) == 0 {
			t.Errorf("the planner reaches nothing of %v: these rules check nothing", list)
		}
	}
	if len(forbidden(g[repotest.Module+"/policy"].Deps, rego)) == 0 {
		t.Error("package policy does not reach Rego: the rule about it checks nothing")
	}
	if got := forbidden([]string{"k8s.io/api/core/v1"}, yamlParser); got != nil {
		t.Errorf("an API type passes for a YAML parser: %v", got)
	}
}

// TestEvidenceIsClosed: policy accepts evidence only as the type that verify
// returns, which nobody else can fill.
func TestEvidenceIsClosed(t *testing.T) {
	e := reflect.TypeFor[verify.Evidence]()
	for i := range e.NumField() {
		if f := e.Field(i); f.IsExported() {
			t.Errorf("verify.Evidence.%s is exported, so anybody could make evidence: keep the field unexported and add a method that returns a copy", f.Name)
		}
	}
	for i := range reflect.PointerTo(e).NumMethod() {
		m := reflect.PointerTo(e).Method(i)
		if m.Type.NumIn() != 1 {
			t.Errorf("verify.Evidence.%s takes arguments: evidence is read, never written", m.Name)
		}
		if strings.HasPrefix(m.Name, "Unmarshal") || strings.HasPrefix(m.Name, "Scan") {
			t.Errorf("verify.Evidence.%s would fill evidence from bytes: only verification may", m.Name)
		}
	}
}
