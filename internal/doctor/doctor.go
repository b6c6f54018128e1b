// Package doctor reads a live installation of Tekton Chains and says what will
// be the same with our observer in its place, what differs, and what to apply.
//
//	Read ──▶ World ──▶ Diagnose ──▶ Report ──▶ text, JSON
//
// Read only reads, with the rights of whoever calls it; what those do not reach
// is said, not guessed. Of Secrets only the names of their entries and the kind
// of PEM block in them leave Read. Diagnose is a pure function, so what it says
// about a cluster can be tested without one.
package doctor

import (
	"fmt"
	"slices"
	"strings"

	"assay.dev/assay/provenance"
)

// Names of what Tekton Chains installs.
const (
	Namespace      = "tekton-chains"
	ConfigMapName  = "chains-config"
	SecretName     = "signing-secrets"
	DeploymentName = "tekton-chains-controller"
	OurDeployment  = "assay-observer"
)

// World is what was found.
type World struct {
	Namespace string
	// Unreadable says what could not be read, and why: topic → reason.
	Unreadable map[string]string

	NamespaceExists bool
	Chains, Ours    *Deployment
	// Config is the data of chains-config; nil: there is no such ConfigMap.
	Config map[string]string
	// Secret is the signing secret's entries by name; nil: there is none.
	Secret map[string]Entry
	// CRDs of Tekton by name (pipelineruns.tekton.dev), with the versions served.
	CRDs map[string][]string
	// Namespaces that the observer is to watch; none: all.
	Namespaces []string
	// Rights lists what the observer's account must be allowed to do.
	Rights []Right
	Runs   Runs
}

// Deployment is a controller that may be running.
type Deployment struct {
	Version  string // label app.kubernetes.io/version
	Replicas int32  // wanted
	Ready    int32
	Args     []string
	Env      []string // names only
}

// Entry is an entry of the signing secret.
type Entry struct {
	// PEM is the type of its PEM block; empty if it is none.
	PEM string
	// Bytes is its size.
	Bytes int
}

// Right is one thing that the observer's account must be allowed to do.
type Right struct {
	Verb, Group, Resource, Namespace string
	Name                             string // of the one object; empty: all
	Allowed                          bool
	// GrantedIn are namespaces that have runs and where a Role grants what is not
	// granted everywhere.
	GrantedIn []string
}

// String is the right as `kubectl auth can-i` takes it.
func (r Right) String() string {
	res := r.Resource
	if r.Group != "" {
		res += "." + r.Group
	}
	if r.Name != "" {
		res += "/" + r.Name
	}
	s := r.Verb + " " + res
	if r.Namespace != "" {
		return s + " in namespace " + r.Namespace
	}
	return s
}

// Runs counts finished runs by what Chains made of them.
type Runs struct {
	Seen      int // looked at; bounded
	Truncated bool
	Signed    int
	Failed    int // marked failed: Chains never comes back to them
	Unmarked  int // finished and neither
	// Stuck are unmarked PipelineRuns that Chains never signs, since it looks
	// for children that are no TaskRuns, or are gone.
	Stuck int
	// Deleting are runs that wait for a finalizer of Chains to go.
	Deleting int
}

// Verdict is what an item says.
type Verdict string

// Verdicts.
const (
	Same    Verdict = "same"    // as with Chains
	Differs Verdict = "differs" // works, but not the same
	Apply   Verdict = "apply"   // something must be done
	Wrong   Verdict = "wrong"   // it is broken now, whoever runs
	Unknown Verdict = "unknown" // could not be read
)

// Item is one finding.
type Item struct {
	Topic   string  `json:"topic"`
	Verdict Verdict `json:"verdict"`
	What    string  `json:"what"`
	// Remedy says what to do, if anything.
	Remedy string `json:"remedy,omitempty"`
}

// Report is the diagnosis.
type Report struct {
	Namespace string `json:"namespace"`
	Items     []Item `json:"items"`
	// Steps are the commands of the change-over, in order.
	Steps []string `json:"steps"`
	// Back are those that undo it.
	Back []string `json:"back"`
}

// Ready says whether nothing is wrong and nothing unknown.
func (r Report) Ready() bool {
	return !slices.ContainsFunc(r.Items, func(i Item) bool { return i.Verdict == Wrong || i.Verdict == Unknown })
}

func (r *Report) add(topic string, v Verdict, remedy, format string, a ...any) {
	r.Items = append(r.Items, Item{Topic: topic, Verdict: v, What: fmt.Sprintf(format, a...), Remedy: remedy})
}

// Diagnose judges what was found.
func Diagnose(w World) Report {
	r := Report{Namespace: w.Namespace}
	for _, topic := range slices.Sorted(mapKeys(w.Unreadable)) {
		r.add(topic, Unknown, "ask somebody with the right to read it to run this", "could not be read: %s", w.Unreadable[topic])
	}
	r.tekton(w)
	r.installation(w)
	r.settings(w)
	r.keys(w)
	r.rights(w)
	r.runs(w)
	r.steps(w)
	return r
}

func (r *Report) tekton(w World) {
	if w.Unreadable["Tekton"] != "" {
		return
	}
	for _, name := range []string{"taskruns.tekton.dev", "pipelineruns.tekton.dev"} {
		versions := w.CRDs[name]
		switch {
		case versions == nil:
			r.add("Tekton", Wrong, "install Tekton Pipelines first", "there is no custom resource definition %s", name)
		case !slices.Contains(versions, "v1"):
			r.add("Tekton", Wrong, "upgrade Tekton Pipelines to 0.44 or later", "%s is served as %s, not as v1", name, strings.Join(versions, ", "))
		default:
			r.add("Tekton", Same, "", "%s is served as v1", name)
		}
	}
}

func (r *Report) installation(w World) {
	if w.Unreadable["Chains"] != "" {
		return
	}
	switch c := w.Chains; {
	case !w.NamespaceExists:
		r.add("Chains", Apply, "kubectl create namespace "+w.Namespace, "there is no namespace %s, and so no Chains", w.Namespace)
	case c == nil:
		r.add("Chains", Same, "", "no Deployment %s runs in %s: nothing to stop", DeploymentName, w.Namespace)
	case c.Replicas == 0:
		r.add("Chains", Same, "", "Deployment %s (%s) is scaled to 0", DeploymentName, version(c))
	default:
		r.add("Chains", Apply, "stop it before the observer starts; until then the observer stands back (assay.peer decides)",
			"Deployment %s (%s) runs with %d of %d replicas ready", DeploymentName, version(c), c.Ready, c.Replicas)
	}
	if w.Chains != nil {
		r.arguments(w.Chains)
	}
	if w.Ours != nil && w.Ours.Replicas > 0 && w.Chains != nil && w.Chains.Replicas > 0 {
		r.add("Chains", Wrong, "scale one of the two Deployments to 0", "both controllers are running")
	}
}

func version(d *Deployment) string {
	if d.Version == "" {
		return "version unknown"
	}
	return d.Version
}

// arguments says what becomes of the flags and environment of Chains.
func (r *Report) arguments(c *Deployment) {
	for _, a := range c.Args {
		flag, value, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		switch flag {
		case "namespace", "threads-per-controller", "kube-api-qps", "kube-api-burst":
			r.add("Flags", Same, "", "--%s=%s means the same for the observer; give it by extraArgs or watch.namespaces", flag, value)
		case "":
		default:
			r.add("Flags", Differs, "leave it out", "--%s is no flag of the observer", flag)
		}
	}
	for _, e := range c.Env {
		switch {
		case e == "MONGO_SERVER_URL":
			r.add("Environment", Apply, "set it on the container observer", "%s is read by the observer too", e)
		case e == "TUF_ROOT", strings.HasPrefix(e, "SIGSTORE_"), e == "SPIFFE_ENDPOINT_SOCKET",
			strings.HasPrefix(e, "AWS_"), strings.HasPrefix(e, "AZURE_"), strings.HasPrefix(e, "GOOGLE_"), strings.HasPrefix(e, "VAULT_"):
			r.add("Environment", Apply, "set it on the container that needs it: signer for keys, observer for storage", "%s is set for Chains", e)
		}
	}
}

func (r *Report) settings(w World) {
	if w.Unreadable["Settings"] != "" {
		return
	}
	if w.Config == nil {
		r.add("Settings", Apply, "kubectl -n "+w.Namespace+" create configmap "+ConfigMapName, "there is no ConfigMap %s: Chains then uses its defaults, the observer waits for one, which may be empty", ConfigMapName)
	}
	cfg, err := provenance.ParseConfig(w.Config)
	if err != nil {
		for _, line := range faults(err) {
			r.add("Settings", Wrong, "mend "+ConfigMapName+"; the observer does not start to sign with it, and keeps the last good settings if it is edited so", "%s; Chains ignores it silently or keeps its old settings", line)
		}
		return
	}
	if w.Config != nil {
		r.add("Settings", Same, "", "all %d keys of %s are understood", len(w.Config), ConfigMapName)
	}
	for _, d := range differences(cfg, w.Config) {
		r.Items = append(r.Items, d)
	}
}

// faults takes a joined error apart.
func faults(err error) []string {
	for e := err; e != nil; {
		switch u := e.(type) {
		case interface{ Unwrap() []error }:
			var out []string
			for _, f := range u.Unwrap() {
				line := f.Error()
				if unknown, _, ok := strings.Cut(line, "; accepted: "); ok && strings.HasPrefix(line, "unknown key") {
					line = unknown // the list of all that are known is in the documentation
				}
				out = append(out, line)
			}
			return out
		case interface{ Unwrap() error }:
			e = u.Unwrap()
		default:
			e = nil
		}
	}
	return []string{err.Error()}
}

// differences are the settings under which the two do not do the same.
func differences(cfg provenance.Config, data map[string]string) []Item {
	var r Report
	for _, a := range []struct {
		name string
		provenance.ArtifactConfig
	}{{"taskrun", cfg.TaskRuns}, {"pipelinerun", cfg.PipelineRuns}, {"oci", cfg.OCI}} {
		key := "artifacts." + a.name
		if a.Signer == "none" {
			r.add("Settings", Same, "", "%s.signer is none: neither signs or stores anything of it", key)
		}
		for _, word := range a.Storage {
			switch word {
			case "kafka":
				r.add("Settings", Differs, "", "%s.storage has kafka: Chains cannot reach its own back end and marks every run failed; the observer writes to storage.pubsub.*", key)
			case "tekton":
				if a.name != "oci" {
					r.add("Settings", Differs, "add oci or another back end for large statements", "%s.storage has tekton: a statement over about 84 kB does not fit into annotations; Chains ends such runs as failed without a word, the observer says why", key)
				}
			case "archivista":
				if a.name == "oci" {
					r.add("Settings", Differs, "", "%s.storage has archivista, which takes no image signatures: Chains fails, the observer skips it and says so", key)
				}
			}
		}
	}
	if cfg.TaskRuns.Enabled() {
		r.add("Settings", Same, "", "TaskRuns get statements of their own, a finalizer and the annotation chains.tekton.dev/signed")
	} else {
		r.add("Settings", Differs, `set assay.taskruns.mark: "true" if something reads it there`, "statements about TaskRuns are off: Chains still puts a finalizer and chains.tekton.dev/signed on every TaskRun, the observer leaves them alone")
	}
	if cfg.X509.Fulcio && data["signers.x509.tuf.mirror.url"] != "" {
		r.add("Settings", Differs, "", "signers.x509.tuf.mirror.url is set: Chains fetches the root from it unauthenticated at every signing; the observer takes the first one it sees, and says so")
	}
	if cfg.KMS.Token != "" || data["storage.docdb.mongo-server-url"] != "" {
		r.add("Settings", Differs, "use signers.kms.auth.token-path, or storage.docdb.mongo-server-url-path", "%s holds a credential in the clear", ConfigMapName)
	}
	return r.Items
}

func (r *Report) keys(w World) {
	if w.Unreadable["Keys"] != "" {
		return
	}
	cfg, err := provenance.ParseConfig(w.Config)
	if err != nil {
		return
	}
	uses := func(kind string) bool {
		for _, a := range []provenance.ArtifactConfig{cfg.TaskRuns, cfg.PipelineRuns, cfg.OCI} {
			if a.Enabled() && a.Signer == kind {
				return true
			}
		}
		return false
	}
	if uses("kms") {
		if cfg.KMS.Ref == "" {
			r.add("Keys", Wrong, "set signers.kms.kmsref", "a signer is kms and no key is named")
		} else {
			r.add("Keys", Same, "give the container signer the credentials that Chains' pod had", "kms: %s", cfg.KMS.Ref)
		}
	}
	switch {
	case !uses("x509"):
	case cfg.X509.Fulcio:
		r.add("Keys", Same, "", "keyless by %s; the identity is that of the service account, so whoever verifies must accept %s/assay-observer beside Chains' account", cfg.X509.FulcioAddress, w.Namespace)
	case w.Secret == nil || len(w.Secret) == 0:
		r.add("Keys", Wrong, "cosign generate-key-pair k8s://"+w.Namespace+"/"+SecretName, "there is no key in Secret %s: nothing can be signed", SecretName)
	case w.Secret["x509.pem"].Bytes > 0:
		r.pem(w.Secret["x509.pem"])
	case w.Secret["cosign.key"].Bytes > 0:
		if _, ok := w.Secret["cosign.password"]; !ok {
			r.add("Keys", Wrong, "add the entry cosign.password (it may be empty)", "Secret %s has cosign.key and no cosign.password", SecretName)
			return
		}
		r.add("Keys", Differs, "", "cosign.key is used, as by Chains; the observer decrypts it once, not for every run (95 ms of CPU each)")
	default:
		r.add("Keys", Wrong, "put a key under the name x509.pem, or cosign.key with cosign.password", "Secret %s has neither x509.pem nor cosign.key, but %s", SecretName, strings.Join(slices.Sorted(mapKeys(w.Secret)), ", "))
	}
}

func (r *Report) pem(e Entry) {
	switch e.PEM {
	case "PRIVATE KEY":
		r.add("Keys", Same, "", "x509.pem is used (PKCS #8), and looked at before cosign.key; signatures verify with the same public key")
	case "EC PRIVATE KEY", "RSA PRIVATE KEY":
		r.add("Keys", Wrong, "openssl pkcs8 -topk8 -nocrypt -in x509.pem", "x509.pem is a %s block; both read PKCS #8 (PRIVATE KEY) only", e.PEM)
	default:
		r.add("Keys", Wrong, "put an unencrypted PKCS #8 key there", "x509.pem holds no PRIVATE KEY block")
	}
}

func (r *Report) runs(w World) {
	if w.Unreadable["Runs"] != "" {
		return
	}
	n := w.Runs
	more := ""
	if n.Truncated {
		more = " (there are more; these were looked at)"
	}
	r.add("Runs", Same, "", "%d finished runs%s: %d signed, %d failed for good, %d not marked", n.Seen, more, n.Signed, n.Failed, n.Unmarked)
	if n.Unmarked > 0 {
		r.add("Runs", Differs, "set assay.start.since (such as 24h) to leave older ones alone", "the observer signs the %d finished runs that Chains has not marked, newest first", n.Unmarked)
	}
	if n.Stuck > 0 {
		r.add("Runs", Differs, "set assay.children.missing: refuse if such runs shall not be signed", "%d PipelineRuns are never signed by Chains, since some of their children are no TaskRuns or are gone; the observer states what there is and names what is missing", n.Stuck)
	}
	if n.Failed > 0 {
		r.add("Runs", Same, "kubectl annotate … chains.tekton.dev/signed- chains.tekton.dev/retries- on those that shall be tried again", "%d runs are marked failed; the observer leaves them so", n.Failed)
	}
	if n.Deleting > 0 {
		r.add("Runs", Differs, "", "%d deleted runs wait for a finalizer of Chains; the observer signs them and lets them go", n.Deleting)
	}
}

// steps are the commands of the change-over.
func (r *Report) steps(w World) {
	ns := w.Namespace
	if w.Chains != nil && w.Chains.Replicas > 0 {
		r.Steps = append(r.Steps, fmt.Sprintf("kubectl -n %s scale deployment/%s --replicas=0", ns, DeploymentName))
	}
	if !w.NamespaceExists {
		r.Steps = append(r.Steps, "kubectl create namespace "+ns)
	}
	if w.Config == nil {
		r.Steps = append(r.Steps, fmt.Sprintf("kubectl -n %s create configmap %s", ns, ConfigMapName))
	}
	r.Steps = append(r.Steps,
		"kubectl apply --server-side -f deploy/observer.yaml",
		fmt.Sprintf("kubectl -n %s rollout status deployment/%s", ns, OurDeployment),
	)
	r.Back = []string{fmt.Sprintf("kubectl -n %s scale deployment/%s --replicas=0", ns, OurDeployment)}
	if w.Chains != nil {
		r.Back = append(r.Back, fmt.Sprintf("kubectl -n %s scale deployment/%s --replicas=%d", ns, DeploymentName, max(1, w.Chains.Replicas)))
	}
}
